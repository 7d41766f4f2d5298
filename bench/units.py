"""Figures: formatted for a reader, parsed as a person types them and as hosts print them. Also text
that is safe on a screen."""

from __future__ import annotations

import re
from fractions import Fraction

from markupsafe import Markup

BYTES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "KiB": 2**10,
    "MB": 10**6,
    "MiB": 2**20,
    "GB": 10**9,
    "GiB": 2**30,
    "TB": 10**12,
    "TiB": 2**40,
}
"""Units of a size: decimal as in the SI, binary as in IEC 80000-13."""

THOUSANDS = {"k": 10**3, "M": 10**6, "G": 10**9}
"""Suffixes of a count, as in 1.5M."""

_TYPED = re.compile(r"([0-9]+(?:_[0-9]+|,[0-9]{3})*(?:\.[0-9]+)?) *([A-Za-z]*)")
_LONGEST = 30
"""Most characters of a typed figure; a longer one is a typing error."""

MOST_WHOLE = (1 << 64) - 1
"""The largest number that a host prints: no counter of a kernel is wider."""

_MOST_DIGITS = len(str(MOST_WHOLE))

_WITH_ES = ("s", "x", "sh", "ch", "echo")
"""Endings of nouns whose plural ends in -es."""


_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL and C1 (ECMA-48), some of which move the cursor
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the text direction (UAX 9)
    "\u2028\u2029\ufeff\ud800-\udfff]"  # line ends, zero width, half a character
)


def printable(text: str, *, lines: bool = False) -> str:
    """Return foreign text for a screen, with control characters written as escapes.

    :param lines: whether newlines and tabs stay as they are
    """

    def escaped(found: re.Match[str]) -> str:
        return found[0] if lines and found[0] in "\n\t" else ascii(found[0])[1:-1]

    return _UNSEEN.sub(escaped, text)


def count(number: int) -> str:
    """Return a count with separated thousands."""
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """Return a count and its noun, in the singular for 1: ``1 connection``, ``2,000 echoes``."""
    if number == 1:
        return f"{count(number)} {noun}"
    if noun.endswith("ry"):  # entry, retry
        return f"{count(number)} {noun[:-1]}ies"
    return f"{count(number)} {noun}{'es' if noun.endswith(_WITH_ES) else 's'}"


def short(number: int) -> str:
    """Return a count; from 10^9 on, where nobody needs the exact figure, as a power of ten."""
    if number < 10**9:
        return count(number)
    digits, power = f"{number:.1e}".split("e+")
    return f"{digits} x 10^{int(power)}"


def size(number: float | None) -> str:
    """Return bytes for a reader: B below 1 KiB, then KiB, MiB, GiB."""
    if number is None:
        return "not measured"
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if abs(number) >= unit:
            return f"{number / unit:,.2f} {name}"
    return f"{number:,.0f} B"


def latency(microseconds: int) -> str:
    """Return a latency for a reader: µs below 1 ms, then ms, then s."""
    if microseconds < 1_000:
        return f"{microseconds} µs"
    if microseconds < 1_000_000:
        return f"{microseconds / 1_000:.3g} ms"
    return f"{microseconds / 1_000_000:.3g} s"


def pair(one: str, two: str) -> Markup:
    """Return two figures side by side; a unit that both share is written once."""
    first, unit = one.rpartition(" ")[::2]
    shown = first if unit == two.rpartition(" ")[2] and first else one
    return Markup("<span>{}</span> <small>/</small> <span>{}</span>").format(shown, two)


def whole(text: str) -> int | None:
    """Return the number that a host printed as ASCII digits; None if the text is not a number, or
    one wider than 64 bits."""
    # str.isdigit() accepts other alphabets too; int() of thousands of digits raises.
    if len(text) > _MOST_DIGITS or not (text.isascii() and text.isdigit()):
        return None
    number = int(text)
    return number if number <= MOST_WHOLE else None


def signed(text: str) -> int | None:
    """Return the same as :func:`whole` for a number that may have a minus sign."""
    number = whole(text.removeprefix("-"))
    return -number if number is not None and text.startswith("-") else number


def parse_size(text: str) -> int:
    """Return the bytes of a typed size: ``64GiB``, ``64 GB``, ``1.5TiB``, or a number of bytes.

    :raises ValueError: with what was expected
    """
    expected = f"a size such as 64GiB, in {', '.join(BYTES)}, or a plain number of bytes"
    return _whole(text, {"": 1, **BYTES}, expected)


def parse_count(text: str) -> int:
    """Return a typed whole number: ``10000000``, ``10_000_000``, ``10,000,000``, ``10M``, ``1.5M``.

    :raises ValueError: with what was expected
    """
    return _whole(text, {"": 1, **THOUSANDS}, "a whole number such as 10_000_000, 10M or 1.5M")


def parse_percentage(text: str) -> Fraction:
    """Return a typed percentage as a fraction: ``10%`` is 1/10.

    :raises ValueError: with what was expected
    """
    number, sign, rest = text.strip().partition("%")
    found = _typed(number)
    if not sign or rest or found is None or found[1]:
        raise ValueError("a percentage such as 10%")
    return found[0] / 100


def _whole(text: str, factors: dict[str, int], expected: str) -> int:
    found = _typed(text)
    if found is None or found[1] not in factors:
        raise ValueError(expected)
    number = found[0] * factors[found[1]]
    if number.denominator != 1:
        raise ValueError(expected)
    return int(number)


def _typed(text: str) -> tuple[Fraction, str] | None:
    """Return number and unit; None if the text is anything but a number with at most one word."""
    match = _TYPED.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    return (Fraction(re.sub("[_,]", "", match[1])), match[2]) if match else None
