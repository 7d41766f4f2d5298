"""The command ``count``: how many connections the hosts have, by port, state or peer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from itertools import islice
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench import inventory, units, wire
from bench.cli.common import (
    ExtraVarsOption,
    InventoryOption,
    JsonOption,
    console,
    counted,
    exit_status,
)
from bench.hosts import count, transport
from bench.hosts.count import Count

WIDTH = 120
"""Most columns of a table that does not go to a terminal."""


class By(StrEnum):
    """The key that connections are counted by."""

    none = "none"
    port = "port"
    state = "state"
    peer = "peer"


class Side(StrEnum):
    """The end whose ports are meant."""

    local = "local"
    peer = "peer"


def count_(
    ports: Annotated[
        str,
        typer.Option("--ports", metavar="RANGES", help="Ports, such as 22,5000-5010."),
    ] = "1-65535",
    by: Annotated[
        By, typer.Option("--by", help="Port, state or remote address (default: one total).")
    ] = By.none,
    side: Annotated[
        Side, typer.Option("--side", help="Ports of the host itself, or of its peers.")
    ] = Side.local,
    names: Annotated[
        list[str] | None,
        typer.Option("--hosts", metavar="NAME", help="Hosts or groups (default: servers)."),
    ] = None,
    states: Annotated[
        list[str] | None,
        typer.Option("--state", metavar="NAME", help="State as ss(8) names it (default: all)."),
    ] = None,
    top: Annotated[
        str, typer.Option("--top", help="Rows per host in the table; --json has all.")
    ] = "20",
    sources: InventoryOption = None,
    extra_vars: ExtraVarsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count the TCP connections that hosts have on some of their ports. Opens no connection."""
    with exit_status():
        shown = counted("--top", top)
        spec: wire.CountSpec = {
            "ranges": count.ranges(ports),
            "side": side.value,
            "states": count.states(states or []),
            "by": by.value,
        }
        listed = inventory.load(sources or [inventory.DEFAULT], extra_vars or [])
        asked = count.hosts(listed, names or [])
        found = count.look(asked, transport.connect, spec)
        total = sum(one.total for one in found)
        if as_json:
            answer = {
                **spec,
                "total": total,
                "hosts": {one.host: one.as_json() for one in found},
            }
            typer.echo(json.dumps(answer, indent=1))
            return
        screen = console()
        if not screen.is_terminal:
            screen = console(width=WIDTH)
        if by is By.none:
            screen.print(_totals(found))
        elif total:
            screen.print(_rows(found, by, shown))
        screen.print(_said(found, by, shown, total), highlight=False)


def _table(*titles: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for title in titles:
        number = title in ("connections", "seconds")
        table.add_column(
            title, justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    return table


def _totals(found: Sequence[Count]) -> Table:
    table = _table("host", "connections", "seconds")
    for one in found:
        table.add_row(one.host, units.count(one.total), f"{one.seconds:.3f}")
    return table


def _rows(found: Sequence[Count], by: By, top: int) -> Table:
    table = _table("host", by.value, "connections")
    for one in found:
        for key, number in islice(one.counts.items(), top):
            table.add_row(one.host, key, units.count(number))
    return table


def _said(found: Sequence[Count], by: By, top: int, total: int) -> str:
    """Return the total in words, and what the table does not show."""
    text = f"{units.plural(total, 'connection')} on {', '.join(one.host for one in found)}"
    hidden = [list(one.counts.values())[top:] for one in found]
    rows, rest = sum(map(len, hidden)), sum(map(sum, hidden))
    if rows:
        text += f"; {units.count(rest)} of them in {units.plural(rows, 'row')} not shown (--top)"
    return text
