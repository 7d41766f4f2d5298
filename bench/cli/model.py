"""The model's commands: predict what the hosts can hold, and check whether a number fits them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench import files, inventory, scenario
from bench.cli.common import (
    ExtraVarsOption,
    InventoryOption,
    JsonOption,
    SettingsOption,
    Show,
    console,
    counted,
    exit_status,
    wanted,
)
from bench.errors import InputError
from bench.hosts import survey, transport
from bench.inventory import Inventory
from bench.model import capacity, fit
from bench.model.bounds import binding
from bench.model.catalogue import CATALOGUE
from bench.model.remarks import Remark, remarks
from bench.plan import planning
from bench.plan.topology import Topology
from bench.results.format import Bound, HostRecord, Predicted
from bench.results.words import whose
from bench.run import progress
from bench.scenario import Scenario
from bench.units import count, plural, short, size

ScenarioOption = Annotated[
    str, typer.Option("--scenario", "-s", help="Scenario whose settings the model uses.")
]


NUMBERS = ("connections", "found", "in use")


class Outlook:
    """The model's view of an inventory's hosts as they are now."""

    def __init__(
        self,
        name: str,
        sources: list[Path] | None,
        settings: list[str] | None,
        extra_vars: list[str] | None,
        connections: int | None = None,
    ) -> None:
        overrides: dict[str, Any] = scenario.parse_settings(settings or [])
        if connections is not None:
            overrides["connections"] = connections
        self.inventory: Inventory = inventory.load(sources or [inventory.DEFAULT], extra_vars or [])
        self.scenario: Scenario = wanted(name, overrides, self.inventory)
        self.hosts: Mapping[str, HostRecord]
        topology = Topology(self.scenario, self.inventory)
        self.hosts, texts = survey.look(topology, transport.connect)
        sources_there, missing = planning.there(topology, self.hosts)
        tuples = planning.tuples(topology, sources_there)
        self.predicted: Predicted = capacity.predict(topology, self.hosts, texts, tuples)
        self.remarks: list[Remark] = remarks(self.scenario, self.hosts)
        if missing:
            self.predicted.notes.append(
                f"{plural(missing, 'client address')} of the inventory not counted: on no host yet"
            )

    def as_json(self) -> dict[str, Any]:
        """Return all of it as data."""
        return {
            "scenario": self.scenario.name,
            "connections": self.scenario.connections,
            **self.predicted.model_dump(mode="json"),
            "binding": {end: one.name for end, one in binding(self.predicted.bounds).items()},
            "remarks": [one._asdict() for one in self.remarks],
        }


def predict(
    name: ScenarioOption = "million",
    sources: InventoryOption = None,
    settings: SettingsOption = None,
    extra_vars: ExtraVarsOption = None,
    as_json: JsonOption = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show every limit's formula and kernel source.")
    ] = False,
) -> None:
    """Predict how many connections the hosts can hold as they are, and which limit binds first."""
    with exit_status():
        seen = Outlook(name, sources, settings, extra_vars)
        if as_json:
            typer.echo(json.dumps(seen.as_json(), indent=1))
            return
        screen = console()
        screen.print(_limits(seen.predicted.bounds))
        for end, one in binding(seen.predicted.bounds).items():
            screen.print(f"{end}: {one.name} binds at {count(one.max_connections)}", style="bold")
            screen.print(f"  raised by {CATALOGUE[one.name].raise_by}", highlight=False)
        _notes(screen, seen)
        if explain:
            for one in seen.predicted.bounds:
                screen.print()
                for line in explained(one):
                    screen.print(line, highlight=False, markup=False)
        else:
            screen.print(_remarks(seen.remarks))


def preflight(
    connections: Annotated[
        str | None, typer.Option("--connections", help="Number to check (default: the scenario's).")
    ] = None,
    name: ScenarioOption = "million",
    sources: InventoryOption = None,
    settings: SettingsOption = None,
    extra_vars: ExtraVarsOption = None,
    as_json: JsonOption = False,
    vars_file: Annotated[
        Path | None,
        typer.Option("--vars-file", help="Write the Ansible variables that make them fit."),
    ] = None,
    show: Annotated[
        Show, typer.Option("--progress", help="ndjson: the outcome as one event, for programs.")
    ] = Show.auto,
) -> None:
    """Check whether that many connections fit the hosts, and what would have to change.

    Opens no connection. Exit status 1 if they do not fit.
    """
    with exit_status(show):
        asked = None if connections is None else counted("--connections", connections)
        seen = Outlook(name, sources, settings, extra_vars, asked)
        number = seen.scenario.connections
        low = fit.changes(seen.predicted.bounds, number)
        if vars_file:
            try:
                files.write(vars_file, fit.vars_file(low, number, seen.inventory.source))
            except OSError as error:
                raise InputError(f"--vars-file: {vars_file}: {error.strerror}") from error
        if show is Show.ndjson:
            progress.emit(
                {
                    "event": "fit",
                    "fits": not low,
                    "lines": [*told(seen, low), *(f"note: {n}" for n in seen.predicted.notes)],
                    "variables": fit.variables(low, number),
                }
            )
        elif as_json:
            typer.echo(
                json.dumps(
                    {
                        "fits": not low,
                        **seen.as_json(),
                        "changes": [
                            {**one.bound.model_dump(), "needed": one.needed, "raise_by": one.how}
                            for one in low
                        ],
                        "variables": fit.variables(low, number),
                    },
                    indent=1,
                )
            )
        else:
            _fit(console(), seen, low, vars_file)
        if low:
            raise typer.Exit(1)


def told(seen: Outlook, low: list[fit.Change]) -> list[str]:
    """Return in lines whether the connections fit and what would have to change."""
    number, least = seen.scenario.connections, seen.predicted.bounds[0]
    if not low:
        return [
            f"{count(number)} connections fit; the first limit above them is {least.name} at "
            f"{count(least.max_connections)}"
        ]
    return [
        f"{count(number)} connections do not fit: {least.name} allows "
        f"{count(least.max_connections)}",
        *(
            f"  {one.bound.name} ({whose(one.bound)}): allows {short(one.bound.max_connections)}; "
            f"{amount(one.bound.limit, one.bound.unit)} found, "
            f"{amount(one.needed, one.bound.unit)} needed; raised by {one.how}"
            for one in low
        ),
    ]


def _fit(screen: Console, seen: Outlook, low: list[fit.Change], vars_file: Path | None) -> None:
    first, *rest = told(seen, low)
    screen.print(first, style="bold red" if low else "bold green")
    for line in rest:
        screen.print(line, highlight=False)
    _notes(screen, seen)
    if vars_file:
        screen.print(f"Ansible variables: {vars_file}", highlight=False)
    elif low:
        screen.print(
            "To let the roles raise what they can: ansible-playbook playbooks/tune.yml "
            f"-e connections={seen.scenario.connections}; --vars-file FILE writes the values",
            highlight=False,
        )


def _table(*titles: str, wide: str = "") -> Table:
    """Return a table of figures; ``wide`` is the title of a last column of text, which may fold."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for title in titles:
        table.add_column(title, no_wrap=True, justify="right" if title in NUMBERS else "left")
    if wide:
        table.add_column(wide, overflow="fold")
    return table


def _limits(bounds: list[Bound]) -> Table:
    table = _table("limit", "where", "connections", "found", "in use")
    for one in bounds:
        table.add_row(
            one.name,
            whose(one),
            short(one.max_connections),
            amount(one.limit, one.unit),
            amount(one.used, one.unit),
        )
    return table


def _remarks(found: list[Remark]) -> Table:
    table = _table("other limit", "found", wide="what it bounds instead of held connections")
    for one in found:
        table.add_row(one.name, one.value, f"{one.says} ({one.host})")
    return table


def _notes(screen: Console, seen: Outlook) -> None:
    for note in seen.predicted.notes:
        screen.print(f"note: {note}", highlight=False)


def explained(one: Bound) -> list[str]:
    """Return a limit's formula with its figures, and its source."""
    entry = CATALOGUE[one.name]
    return [
        f"{one.name} ({one.end}{' ' + one.host if one.host else ''}): "
        f"({one.limit:,} - {one.used:,}) / {one.per_connection:.6g} {one.unit} a connection "
        f"= {one.max_connections:,}",
        f"  counts: {entry.counts}",
        f"  source: {entry.source}",
        f"  raise:  {entry.raise_by}",
    ]


def amount(number: int, unit: str) -> str:
    """Return an amount in a limit's unit for a reader."""
    return size(number) if unit == "bytes" else short(number)
