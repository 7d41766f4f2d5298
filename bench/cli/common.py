"""Code that all commands share: options, and errors as one line and an exit status."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console

from bench import scenario, units
from bench.errors import ConnlabError, InputError
from bench.interrupts import EXIT_STATUS, INTERRUPTS, write_now
from bench.inventory import Inventory
from bench.run import progress
from bench.scenario import Scenario

RESULTS = Path("results")

Value = TypeVar("Value")

_OUTPUT_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EPIPE)
"""Errnos of write(2) on a file or a pipe."""


class Show(StrEnum):
    """How a run shows its progress."""

    auto = "auto"
    plain = "plain"
    ndjson = "ndjson"


ResultsOption = Annotated[Path, typer.Option("--results", help="Directory that keeps the runs.")]
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
    list[str] | None, typer.Option("--extra-vars", "-e", help="Variables for ansible-inventory.")
]


def wanted(name: str, overrides: Mapping[str, Any], hosts: Inventory) -> Scenario:
    """Return the scenario of that name for these hosts.

    :param overrides: fields that take precedence over those that the inventory sets, one by one
    :raises InputError: for an unknown name or field, or a value out of range, in either
    """
    fields = {key: scenario.parse_value(value) for key, value in hosts.settings.items()}
    return scenario.load(name, {**fields, **overrides}, scenario.parse_value(hosts.connections))


@contextlib.contextmanager
def exit_status(show: Show = Show.auto) -> Iterator[None]:
    """Turn an error into one line and an exit status."""
    INTERRUPTS.say = lambda line: _tell_at_once(line, show)
    try:
        with INTERRUPTS.handled():
            yield
    except ConnlabError as error:
        _fail(str(error), error.exit_status, show)
    except typer.Exit:
        raise
    except OSError as error:
        if not output_failed(error):
            _internal(error, show)
        raise typer.Exit(unwritten(error)) from error
    except Exception as error:
        _internal(error, show)
    except KeyboardInterrupt as error:
        left = str(error) or "everything that the run opened is closed"
        _fail(f"interrupted; {left}", EXIT_STATUS, show)


def parsed(option: str, text: str, parse: Callable[[str], Value]) -> Value:
    """Return the value of an option.

    :param parse: raises ValueError with what it expected
    :raises InputError: names the option, the text and what was expected
    """
    try:
        return parse(text)
    except ValueError as expected:
        raise InputError(f"{option}: got {text!r}, expected {expected}") from None


def counted(option: str, text: str, most: int | None = None) -> int:
    """Return an option's count, at least 1, such as 300, 250_000 or 1.5M.

    :raises InputError: for another text, or for more than ``most``
    """
    number = parsed(option, text, units.parse_count)
    if number < 1 or (most is not None and number > most):
        expected = "at least 1" if most is None else f"1 to {units.count(most)}"
        raise InputError(f"{option}: got {text!r}, expected {expected}")
    return number


def end_with_parent() -> None:
    """Have this process interrupted when its parent, which reads the events, dies: prctl(2),
    PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def say(line: str) -> None:
    """Print one line on standard error, such as why a command ends."""
    print(f"connlab: {units.printable(line)}", file=sys.stderr)


class Screen(Console):
    """A console that reports a broken pipe like any other output."""

    def on_broken_pipe(self) -> None:
        """Handle a reader that is gone. :raises BrokenPipeError: as write(2) does"""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Return a console that shows text as it is: brackets and colons in it are not markup."""
    return Screen(stderr=stderr, width=width, markup=False, emoji=False)


def _tell(line: str, status: int, show: Show) -> None:
    line = units.printable(line)
    if show is Show.ndjson:
        progress.emit({"event": "error", "exit": status, "message": line})
    else:
        say(line)


def _tell_at_once(line: str, show: Show) -> None:
    """Write the same from a signal handler, without the streams that the signal may interrupt."""
    event = json.dumps({"event": "error", "exit": EXIT_STATUS, "message": line})
    number, text = (1, event) if show is Show.ndjson else (2, f"connlab: {units.printable(line)}")
    write_now(number, text)


def _fail(line: str, status: int, show: Show) -> NoReturn:
    _tell(line, status, show)
    raise typer.Exit(status)


def _internal(error: Exception, show: Show) -> NoReturn:
    print(units.printable(traceback.format_exc(), lines=True), end="", file=sys.stderr)
    _fail(f"internal error: {type(error).__name__}: {error}", 3, show)


def output_failed(error: OSError) -> bool:
    """Return whether standard output failed: errors of other files have a file name."""
    return error.filename is None and error.errno in _OUTPUT_ERRNOS


def unwritten(error: OSError) -> int:
    """Report that standard output failed, unless its reader is gone; return the exit status."""
    with contextlib.suppress(OSError, ValueError):  # the rest of the output goes to /dev/null
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno != errno.EPIPE:
        say(f"standard output: cannot be written: {error.strerror}")
    return 3
