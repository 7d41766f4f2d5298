"""A fleet's plan as text: a table on a terminal, aligned columns elsewhere."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from bench.sizing.fleet import End, Fleet
from bench.units import count, plural, size

WIDTH = 80
"""Columns of the lines outside the table."""

Row = tuple[str, str, str]

_RAM = {
    "sockets": "  sockets",
    "descriptors": "  descriptor tables",
    "agent": "  agent and workers",
    "ehash": "  established-hash table",
    "system": "  kernel and system",
    "floor": "  memory floor of a run",
    "spare": "  spare",
}

_WHY = {
    "none": "one host is enough",
    "option": "--servers asks for more than any limit does",
}


def show(found: Fleet, notes: list[str], written: Path | None, console: Console) -> None:
    """Print a plan, its notes and where its inventory was written."""
    lines = list(rows(found))
    head: Row = ("of each host", "servers", "clients")
    typer.echo(headline(found))
    if console.is_terminal:
        table = Table(head[0])
        for name in head[1:]:
            table.add_column(name, justify="right")
        for line in lines:
            table.add_row(*line)
        console.print(table, highlight=False)
    else:
        widths = [max(len(line[column]) for line in [head, *lines]) for column in range(3)]
        for label, one, two in [head, *lines]:
            typer.echo(f"{label:{widths[0]}}  {one:>{widths[1]}}  {two:>{widths[2]}}")
    for text in [*said(found), *(f"note: {note}" for note in notes)]:
        typer.echo(_wrapped(text))
    if written is not None:
        typer.echo(f"written: {written}")
        typer.echo(_wrapped(f"{written}/hosts.yml says what to fill in and how to run it"))


def headline(found: Fleet) -> str:
    """Return the needed hosts in one line."""
    return (
        f"{plural(found.connections, 'connection')}: {plural(found.servers.hosts, 'server')}, "
        f"{plural(found.clients.hosts, 'client')}"
    )


def rows(found: Fleet) -> Iterator[Row]:
    """Yield the figures of both ends, each with its unit."""
    ends = (found.servers, found.clients)

    def row(label: str, *cells: str) -> Row:
        one, two = cells
        return label, one, two

    yield row("hosts", *(count(end.hosts) for end in ends))
    yield row("connections each, at most", *(count(end.largest) for end in ends))
    yield row("most on one host", *(count(end.most) for end in ends))
    yield row("  bound by", *(next(iter(end.limits)) for end in ends))
    yield row("cores", *(count(end.cores) for end in ends))
    yield row("worker processes", *(count(end.workers) for end in ends))
    yield row("addresses", *(count(end.addresses) for end in ends))
    yield row("ports of each address", *(count(end.ports) for end in ends))
    yield row("established-hash entries", *(count(end.ehash_entries) for end in ends))
    yield row("memory given", *(size(end.ram.given) for end in ends))
    yield row("memory needed", *(size(end.ram.needed) for end in ends))
    for part, label in _RAM.items():
        yield row(label, *(size(getattr(end.ram, part)) for end in ends))
    yield row("slab of one socket", *(size(end.socket_bytes) for end in ends))


def said(found: Fleet) -> Iterator[str]:
    """Yield the limits that decided, the tuples, the time of the ramp and the figures' sources."""
    yield f"bound by: servers {_why(found.servers)}; clients {_why(found.clients)}"
    addresses = found.clients.hosts * found.clients.addresses
    yield (
        f"tuples: {plural(addresses, 'client address')} x "
        f"{count(found.clients.ports)} ports x {plural(found.endpoints, 'server endpoint')} = "
        f"{count(found.tuples)}"
    )
    ramp = found.ramp
    paced = "both ends equally" if ramp.decided_by == "both" else f"the {ramp.decided_by}"
    yield (
        f"ramp: {duration(ramp.seconds)} at best, {count(round(ramp.connections_per_second))} "
        f"connections a second, paced by {paced}, with every core at "
        f"{count(round(ramp.per_core))} a second"
    )
    yield f"rate: {ramp.source}"
    yield f"sizes: kernel objects of Linux {found.sizes_of} on x86-64"


def duration(seconds: float) -> str:
    """Return a time for a reader: s, from two minutes on min and s."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{count(minutes)} min {rest} s"


def _why(end: End) -> str:
    limit = next(iter(end.limits))
    if end.decided_by in _WHY:
        return f"{end.decided_by}, {_WHY[end.decided_by]} ({limit} allows {count(end.most)} each)"
    return f"{end.decided_by}, which allows {count(end.most)} each"


def _wrapped(text: str) -> str:
    return "\n".join(
        textwrap.wrap(
            text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    )
