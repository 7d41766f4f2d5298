"""``python -m bench``: the commands."""

from __future__ import annotations

import typer

from bench.cli import claims, count, model, plan, runs

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How many TCP connections can a server hold, what stops it, what does each cost?",
)
app.command("run")(runs.run)
app.command("list")(runs.list_)
app.command("report")(runs.report_)
app.command("predict")(model.predict)
app.command("preflight")(model.preflight)
app.command("plan")(plan.plan)
app.add_typer(claims.app, name="claims")
app.command("count")(count.count_)
