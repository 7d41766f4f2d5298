"""The commands for runs: run a scenario, list scenarios and runs, render a report again."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from bench import inventory, scenario, units
from bench.cli.common import (
    RESULTS,
    ExtraVarsOption,
    InventoryOption,
    JsonOption,
    ResultsOption,
    SettingsOption,
    Show,
    console,
    end_with_parent,
    exit_status,
    say,
    wanted,
)
from bench.hosts import transport
from bench.plan import planning
from bench.plan.topology import Topology
from bench.results import page, words
from bench.results.store import Store
from bench.run import progress, runner
from bench.units import plural


def run(
    name: Annotated[str, typer.Argument(metavar="SCENARIO", help="Name of the scenario.")],
    sources: InventoryOption = None,
    settings: SettingsOption = None,
    extra_vars: ExtraVarsOption = None,
    store: ResultsOption = RESULTS,
    as_json: JsonOption = False,
    show: Annotated[
        Show, typer.Option("--progress", help="auto: a bar on a terminal, else lines.")
    ] = Show.auto,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check scenario, inventory and plan; touch nothing.")
    ] = False,
) -> None:
    """Run a scenario on the hosts of an inventory and keep the results."""
    if show is Show.ndjson:
        end_with_parent()
    with exit_status(show):
        overrides = scenario.parse_settings(settings or [])
        hosts = inventory.load(sources or [inventory.DEFAULT], extra_vars or [])
        asked = wanted(name, overrides, hosts)
        if dry_run:
            topology = Topology(asked, hosts)
            tuples = planning.plan_for(topology)
            typer.echo(
                f"{name}: {plural(asked.connections, 'connection')} from "
                f"{plural(len(topology.clients), 'client')} to "
                f"{plural(len(topology.servers), 'server')}; "
                f"{plural(tuples.capacity, 'tuple')} planned"
            )
            return
        with progress.view(show.value, console(stderr=as_json)) as update:
            done = runner.run(asked, hosts, Store(store), transport.connect, update)
        if show is Show.ndjson:
            progress.emit(
                {
                    "event": "result",
                    "path": str((store / done.run_id / "run.json").resolve()),
                    "summary": words.summary(done, store / done.run_id),
                }
            )
        elif as_json:
            typer.echo(done.model_dump_json(by_alias=True, indent=1))
        else:
            for line in words.summary(done, store / done.run_id):
                typer.echo(line)
        if done.verdict != "pass":
            raise typer.Exit(1)


def list_(store: ResultsOption = RESULTS, as_json: JsonOption = False) -> None:
    """List the scenarios and the runs so far."""
    with exit_status():
        known = [scenario.load(name) for name in scenario.names()]
        unreadable: list[str] = []
        past = list(Store(store).runs(unreadable.append))
        if as_json:
            typer.echo(
                json.dumps(
                    {
                        "scenarios": [{"name": one.name, "title": one.title} for one in known],
                        "runs": [
                            one.model_dump(
                                mode="json",
                                include={
                                    "run_id": True,
                                    "scenario": True,
                                    "verdict": True,
                                    "measured": {"established", "connections_per_second"},
                                },
                            )
                            for one in past
                        ],
                        "unreadable": unreadable,
                    },
                    indent=1,
                )
            )
            return
        screen = console()
        table = Table("scenario", "what it does", title="Scenarios", title_justify="left")
        for one in known:
            table.add_row(one.name, one.title)
        screen.print(table)
        table = Table("run", "verdict", "held", "conn/s", title="Runs", title_justify="left")
        for run_ in past:
            table.add_row(
                units.printable(run_.run_id),
                run_.verdict,
                f"{run_.measured.established.clients:,}",
                f"{run_.measured.connections_per_second:,.0f}",
            )
        screen.print(table)
        for line in unreadable:
            say(line)


def report_(
    run_id: Annotated[str, typer.Argument(help="Id of a run, or latest.")] = "latest",
    store: ResultsOption = RESULTS,
    as_json: JsonOption = False,
) -> None:
    """Render a run's report.html again and print its summary."""
    with exit_status():
        kept = Store(store)
        name = kept.find(run_id)
        found = kept.load(name)
        kept.write_page(name, page.render(found))
        if as_json:
            typer.echo(found.model_dump_json(by_alias=True, indent=1))
        else:
            for line in words.summary(found, store / name):
                typer.echo(line)
