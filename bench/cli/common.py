"""What all commands share: options, and what went wrong as one line and the exit status."""

from __future__ import annotations

import ctypes
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from bench import progress, scenario
from bench.errors import ConnlabError
from bench.inventory import Inventory
from bench.scenario import Scenario

RESULTS = Path("results")


class Show(StrEnum):
    """How a run shows where it stands."""

    auto = "auto"
    plain = "plain"
    ndjson = "ndjson"


ResultsOption = Annotated[Path, typer.Option("--results", help="Directory that runs are kept in.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
InventoryOption = Annotated[
    list[Path] | None,
    typer.Option("--inventory", "-i", help="Ansible inventory (default: inventory/local)."),
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field of the scenario."),
]
ExtraVarsOption = Annotated[
    list[str] | None, typer.Option("--extra-vars", "-e", help="Passed to ansible-inventory.")
]


def wanted(name: str, overrides: Mapping[str, Any], hosts: Inventory) -> Scenario:
    """The scenario of that name for these hosts.

    :param overrides: fields that win over those that the inventory sets, one by one
    :raises InputError: for an unknown name or field, or a value out of range, of either
    """
    fields = {key: scenario.parse_value(value) for key, value in hosts.settings.items()}
    return scenario.load(name, {**fields, **overrides}, scenario.parse_value(hosts.connections))


@contextmanager
def exit_status(show: Show = Show.auto) -> Iterator[None]:
    """Turn what went wrong into one line and the exit status."""
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except ConnlabError as error:
        _fail(str(error), error.exit_status, show)
    except typer.Exit:
        raise
    except Exception as error:
        traceback.print_exc()
        _fail(f"internal error: {type(error).__name__}: {error}", 3, show)
    except KeyboardInterrupt:
        _fail("interrupted; everything that the run opened is closed", 130, show)
    finally:
        signal.signal(signal.SIGTERM, previous)


def end_with_parent() -> None:
    """Be interrupted when the program that reads the events dies: prctl(2), PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _fail(line: str, status: int, show: Show) -> NoReturn:
    if show is Show.ndjson:
        progress.emit({"event": "error", "exit": status, "message": line})
    else:
        print(f"connlab: {line}", file=sys.stderr)
    raise typer.Exit(status)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
