"""Figures as a reader takes them in, as a person types them and as hosts print them; text that a
screen can show."""

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
"""What may follow a count, as in 1.5M."""

_TYPED = re.compile(r"([0-9]+(?:_[0-9]+|,[0-9]{3})*(?:\.[0-9]+)?) *([A-Za-z]*)")
_LONGEST = 30
"""Characters of a typed figure: more of them are a slip of the hand."""

MOST_WHOLE = (1 << 64) - 1
"""The largest number that a host prints: no counter of a kernel is wider."""

_MOST_DIGITS = len(str(MOST_WHOLE))


_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL and C1 (ECMA-48): among them what moves a cursor
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction (UAX 9)
    "\u2028\u2029\ufeff\ud800-\udfff]"  # what ends a line, has no width, is half a character
)


def printable(text: str, *, lines: bool = False) -> str:
    """Text of others for a screen: what would act instead of being seen is written as an escape.

    :param lines: whether newlines and tabs are its own, and stay
    """

    def escaped(found: re.Match[str]) -> str:
        return found[0] if lines and found[0] in "\n\t" else ascii(found[0])[1:-1]

    return _UNSEEN.sub(escaped, text)


def count(number: int) -> str:
    """A count with thousands separated."""
    return f"{number:,}"


def short(number: int) -> str:
    """A count; from a thousand million on, which none means exactly, as a power of ten."""
    if number < 10**9:
        return count(number)
    digits, power = f"{number:.1e}".split("e+")
    return f"{digits} x 10^{int(power)}"


def size(number: float | None) -> str:
    """Bytes for a reader: B below 1 KiB, then KiB, MiB, GiB."""
    if number is None:
        return "not measured"
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if abs(number) >= unit:
            return f"{number / unit:,.2f} {name}"
    return f"{number:,.0f} B"


def latency(microseconds: int) -> str:
    """A latency for a reader: µs below 1 ms, then ms, then s."""
    if microseconds < 1_000:
        return f"{microseconds} µs"
    if microseconds < 1_000_000:
        return f"{microseconds / 1_000:.3g} ms"
    return f"{microseconds / 1_000_000:.3g} s"


def pair(one: str, two: str) -> Markup:
    """Two figures as one; a unit that both have is written once."""
    first, unit = one.rpartition(" ")[::2]
    shown = first if unit == two.rpartition(" ")[2] and first else one
    return Markup("<span>{}</span> <small>/</small> <span>{}</span>").format(shown, two)


def whole(text: str) -> int | None:
    """Return the number that a host printed as ASCII digits; None where it is none, or wider than
    64 bits."""
    # str.isdigit has other alphabets too; int() of thousands of digits raises.
    if len(text) > _MOST_DIGITS or not (text.isascii() and text.isdigit()):
        return None
    number = int(text)
    return number if number <= MOST_WHOLE else None


def signed(text: str) -> int | None:
    """Return the same of a number that may have a minus before it."""
    number = whole(text.removeprefix("-"))
    return -number if number is not None and text.startswith("-") else number


def parse_size(text: str) -> int:
    """Bytes in a size as typed: ``64GiB``, ``64 GB``, ``1.5TiB``, or a plain number of bytes.

    :raises ValueError: saying what was expected
    """
    expected = f"a size such as 64GiB, in {', '.join(BYTES)}, or a plain number of bytes"
    return _whole(text, {"": 1, **BYTES}, expected)


def parse_count(text: str) -> int:
    """A whole number as typed: ``10000000``, ``10_000_000``, ``10,000,000``, ``10M``, ``1.5M``.

    :raises ValueError: saying what was expected
    """
    return _whole(text, {"": 1, **THOUSANDS}, "a whole number such as 10_000_000, 10M or 1.5M")


def parse_percentage(text: str) -> Fraction:
    """A part of a whole as typed: ``10%`` is 1/10.

    :raises ValueError: saying what was expected
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
    """Number and unit; None where there is no number, or more than a number and a word."""
    match = _TYPED.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    return (Fraction(re.sub("[_,]", "", match[1])), match[2]) if match else None
