"""The claims' outcome as a table: on a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bench.claims.record import Record
from bench.units import printable

COLOURS = {
    "confirmed": "green",
    "refuted": "magenta",
    "depends": "cyan",
    "not measurable here": "yellow",
    "inconclusive": "bold red",
    "failed": "bold red",
}


def coloured(verdict: str) -> Text:
    """Return a verdict for a terminal."""
    return Text(verdict, style=COLOURS[verdict])


def rich_table(records: Iterable[Record]) -> Table:
    """Return a table with a row for each claim."""
    table = Table("claim", "measured", "verdict", "read more", box=SIMPLE_HEAD, pad_edge=False)
    for one in records:
        table.add_row(one.claim, printable(_found(one)), coloured(one.verdict), one.read)
    return table


def markdown(records: Sequence[Record]) -> str:
    """Return the same as Markdown, with the lab of the measurement."""
    rows = ["| claim | measured | verdict | why | read more |", "|---|---|---|---|---|"]
    for one in records:
        cells = (one.claim, one.measured, one.verdict, one.reason, one.read)
        rows.append("| " + " | ".join(printable(cell).replace("|", "\\|") for cell in cells) + " |")
    if records:
        kernels = ", ".join(sorted({kernel for one in records for kernel in one.kernels.values()}))
        seconds = sum(one.seconds for one in records)
        rows += [
            "",
            f"Profile {records[0].profile}, substrate {records[0].substrate}, Linux {kernels}, "
            f"{records[0].started:%Y-%m-%d}, {seconds:.0f} s in all.",
        ]
    return "\n".join(rows) + "\n"


def _found(one: Record) -> str:
    return f"{one.measured}; {one.reason}" if one.measured else one.reason
