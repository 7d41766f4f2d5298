"""Figures as a reader takes them in."""

from __future__ import annotations

from markupsafe import Markup


def count(number: int) -> str:
    """A count with thousands separated."""
    return f"{number:,}"


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
