"""Bad usage of any command: one line, exit status 2, nothing on standard output."""

from __future__ import annotations

import os
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


@pytest.mark.parametrize("words", ["list", "list --json", "claims", "--help", "run --help"])
def test_an_output_that_is_full(words: str) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bench", *words.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert done.stderr == ("connlab: standard output: cannot be written: No space left on device\n")


@pytest.mark.parametrize("words", ["list", "list --json"])
def test_an_output_that_nobody_reads(words: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words.split()],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (3, b"")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("connections=" + "[" * 3000, "--set connections: got '[[["),
        ("connections=" + "9" * 5000, "--set connections: got '999"),
        (f"server_ports={list(range(1, 3000))}", "scenario million: server_ports: got [1, 2, 3,"),
        ("connections=.nan", "scenario million: connections: got nan, expected a valid integer"),
        ("hold_seconds=.inf", "scenario million: hold_seconds: got inf, expected less than or"),
        ("connections=!!python/name:os.system", "--set connections: got '!!python/name:os.system'"),
        ("connections=&x [*x]", "scenario million: connections: got [[...]], expected a valid"),
    ],
)
def test_settings_that_are_odd_or_endless(setting: str, said: str) -> None:
    done = CliRunner().invoke(app, ["run", "million", "--dry-run", "--set", setting])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"connlab: {said}") and done.stderr.count("\n") == 1
    assert len(done.stderr) < 300
