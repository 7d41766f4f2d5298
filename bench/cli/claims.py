"""Claims: list the statements about limits, measure them, write the page of their verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bench import files, inventory, scenario, units
from bench.claims import page, register, table
from bench.claims.model import PROFILES
from bench.claims.record import Kept, Record, Records
from bench.claims.runner import Asked, Runner
from bench.cli.common import (
    RESULTS,
    ExtraVarsOption,
    InventoryOption,
    JsonOption,
    ResultsOption,
    Show,
    console,
    end_with_parent,
    exit_status,
    say,
)
from bench.errors import InputError
from bench.hosts import transport
from bench.run import progress

app = typer.Typer(
    invoke_without_command=True,
    help="What people say about connection limits: list the claims, measure them.",
)


@app.callback()
def list_(
    context: typer.Context, store: ResultsOption = RESULTS, as_json: JsonOption = False
) -> None:
    """List the claims, each with its newest verdict."""
    if context.invoked_subcommand:
        return
    with exit_status():
        unreadable: list[str] = []
        newest = {one.claim: one for one in Records(store).all(unreadable.append)}
        for line in unreadable:
            say(line)
        if as_json:
            typer.echo(
                json.dumps(
                    [
                        {
                            "claim": one.id,
                            "said": one.said,
                            "groups": ["servers", "clients", *one.groups],
                            "profiles": {
                                "small": one.small.model_dump(mode="json"),
                                "full": one.full.model_dump(mode="json"),
                            },
                            "read": one.read,
                            "newest": _short(newest.get(one.id)),
                        }
                        for one in register.CLAIMS.values()
                    ],
                    indent=1,
                )
            )
            return
        shown = Table("claim", "statement", "newest verdict", box=SIMPLE_HEAD, pad_edge=False)
        for one in register.CLAIMS.values():
            last = newest.get(one.id)
            verdict = table.coloured(last.verdict) if last else Text("-")
            shown.add_row(one.id, one.said, verdict)
        console().print(shown)


def _short(record: Record | None) -> dict[str, str] | None:
    if record is None:
        return None
    return {"id": record.id, "verdict": record.verdict, "profile": record.profile}


@app.command("run")
def run(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CLAIM]...", help="Claims to measure (default: all)."),
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", help="small: seconds per claim; full: at the claimed size.")
    ] = "small",
    sources: InventoryOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a parameter of one claim."),
    ] = None,
    extra_vars: ExtraVarsOption = None,
    store: ResultsOption = RESULTS,
    as_json: JsonOption = False,
    show: Annotated[
        Show, typer.Option("--progress", help="ndjson: one JSON line per event, for programs.")
    ] = Show.auto,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check claims, profile and topology; touch nothing.")
    ] = False,
) -> None:
    """Measure claims on the hosts of an inventory and print one table of verdicts.

    Exit status 1 if a claim is inconclusive, 3 if the lab failed during a claim.
    """
    if show is Show.ndjson:
        end_with_parent()
    with exit_status(show):
        wanted = [register.claim(name) for name in names or register.CLAIMS]
        overrides = scenario.parse_settings(settings or [])
        if overrides and len(wanted) != 1:
            raise InputError(f"--set: got {len(wanted)} claims, expected a single claim")
        if profile not in PROFILES:
            raise InputError(f"--profile: got {profile!r}, expected one of {', '.join(PROFILES)}")
        asked = [Asked(one, one.parameters(profile, overrides)) for one in wanted]
        hosts = inventory.load(sources or [inventory.DEFAULT], extra_vars or [])
        screen = console(stderr=as_json)

        def update(claim: str, text: str) -> None:
            line = units.printable(f"{claim}: {text}")
            if show is Show.ndjson:
                progress.emit({"event": "progress", "claim": claim, "text": line})
            else:
                screen.print(line, highlight=False, markup=False, soft_wrap=True)

        runner = Runner(hosts, transport.connect, store, update)
        if dry_run:
            runner.check(asked, bool(names))
            typer.echo(f"claims: {', '.join(one.claim.id for one in asked)}; profile {profile}")
            return
        records = runner.run(asked, "full" if profile == "full" else "small", bool(names))
        text = table.markdown(records)
        Records(store).batch(records, text)
        if show is Show.ndjson:
            progress.emit(
                {
                    "event": "claims",
                    "path": str((store / "claims.json").resolve()),
                    "summary": text.splitlines(),
                    "verdicts": {one.claim: one.verdict for one in records},
                }
            )
        elif as_json:
            typer.echo(
                json.dumps([json.loads(one.model_dump_json(by_alias=True)) for one in records])
            )
        else:
            screen.print(table.rich_table(records))
        verdicts = {one.verdict for one in records}
        if "failed" in verdicts:
            raise typer.Exit(3)
        if "inconclusive" in verdicts:
            raise typer.Exit(1)


@app.command("page")
def page_(
    target: Annotated[Path, typer.Argument(help="File to write.")] = Path("docs/claims.md"),
    store: ResultsOption = RESULTS,
) -> None:
    """Write the page of measured claims from the newest full record of each claim.

    The records behind the page are kept beside it, in measured/. A record there counts if the
    results have no better one.
    """
    with exit_status():
        kept = Kept(target.parent / "measured")
        claims = list(register.CLAIMS.values())
        records = page.told(claims, [*kept.all(), *Records(store).all(say)])
        try:
            files.write(target, page.render(claims, records))
            kept.keep(records)
        except OSError as error:
            raise InputError(f"page: {target}: {error.strerror}") from error
        typer.echo(f"written: {target}")
