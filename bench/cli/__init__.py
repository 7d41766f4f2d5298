"""``python -m bench``: the commands."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bench.cli import claims, count, model, plan, runs
from bench.cli.common import output_failed, say, unwritten
from bench.errors import InputError
from bench.version import version


class Commands(TyperGroup):
    """All commands. Bad usage is reported like bad input: one line, exit status 2."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; in ``standalone_mode``, end the process with its exit status."""
        options = (prog_name, complete_var, False, windows_expand_args)
        if not standalone_mode:
            return super().main(args, *options, **extra)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a locale may lack characters, such as µ
                stream.reconfigure(errors="backslashreplace")
        try:
            status = super().main(args, *options, **extra)
        except typer.TyperException as error:
            # Pydantic's prefix is of no use to a user. Without a command there is no message,
            # because the help has been printed.
            if message := error.format_message().replace("Value error, ", ""):
                say(message)
            status = InputError.exit_status
        except OSError as error:
            if not output_failed(error):
                raise
            status = unwritten(error)
        sys.exit(status)


app = typer.Typer(
    cls=Commands,
    name="bench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(version())
        raise typer.Exit


@app.callback()
def main(
    asked: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the commit and exit.", is_eager=True, callback=_version
        ),
    ] = False,
) -> None:
    """How many TCP connections can a server hold, what stops it, and what does each one cost?"""


app.command("run")(runs.run)
app.command("list")(runs.list_)
app.command("report")(runs.report_)
app.command("predict")(model.predict)
app.command("preflight")(model.preflight)
app.command("plan")(plan.plan)
app.add_typer(claims.app, name="claims")
app.command("count")(count.count_)
