"""One parser per source of evidence. Each takes the text as printed and returns plain data.

A host has written the text, so it may be anything. Even then a parser ends soon, and raises nothing
but :class:`ParseError`.
"""

from __future__ import annotations

from bench.units import whole


class ParseError(ValueError):
    """A text that no kernel or tool prints; the error has source, line and what was expected."""


MOST_SHOWN = 200
"""The most characters of a line that an error quotes."""


def shown(line: str) -> str:
    """Return a line for an error, cut off if it is long."""
    return repr(line if len(line) <= MOST_SHOWN else line[: MOST_SHOWN - 3] + "...")


def number(text: str, where: str) -> int:
    """Return a number of 64 bits at most.

    :param where: source and line, for the error
    :raises ParseError: if it is not one
    """
    found = whole(text)
    if found is None:
        raise ParseError(f"{where}: {shown(text)} is not a number below 2^64")
    return found
