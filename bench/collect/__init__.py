"""One parser per source of evidence. Each takes the text as printed and returns plain data.

Whatever the text is, a parser ends soon and raises nothing but :class:`ParseError`: what it is
given was written by a host.
"""

from __future__ import annotations

from bench.units import whole


class ParseError(ValueError):
    """A text that no kernel or tool prints; it names the source, the line and what was expected."""


MOST_SHOWN = 200
"""Characters of a line that an error quotes."""


def shown(line: str) -> str:
    """Return a line for an error, its end left out where it is long."""
    return repr(line if len(line) <= MOST_SHOWN else line[: MOST_SHOWN - 3] + "...")


def number(text: str, where: str) -> int:
    """Return a number of 64 bits at most.

    :param where: source and line, for the error
    :raises ParseError: if it is none
    """
    found = whole(text)
    if found is None:
        raise ParseError(f"{where}: {shown(text)} is not a number below 2^64")
    return found
