"""Bad usage of any command: one line, exit status 2, nothing on standard output."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from bench.cli import app


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("frobnicate", "No such command 'frobnicate'."),
        ("claims rnu", "No such command 'rnu'. Did you mean 'run'?"),
        ("run", "Missing argument 'SCENARIO'."),
        ("run million --set", "Option '--set' requires an argument."),
        ("run million --progress loud", "Invalid value for '--progress': 'loud' is not one of"),
        ("list --nope", "No such option: --nope"),
        ("plan", "Missing option '--connections'."),
    ],
)
def test_one_line(words: str, said: str) -> None:
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"connlab: {said}") and done.stderr.count("\n") == 1


def test_no_command_shows_the_help() -> None:
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 2
    assert "Usage: " in done.output and "predict" in done.output
    assert "connlab:" not in done.output


def test_as_a_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "count", "--by"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "connlab: Option '--by' requires an argument.\n"
