"""The exit status of a command, whatever ended it, and the one line that says so."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from runs import million, stopped
from typer.testing import CliRunner, Result

from bench import inventory
from bench.claims.record import Record
from bench.cli import app, claims, common
from bench.errors import InputError, LabError
from bench.results.format import Run
from bench.run import runner


@pytest.mark.parametrize(
    ("ends", "status", "line"),
    [
        (InputError("field: got 1, expected 2"), 2, "field: got 1, expected 2"),
        (LabError("host a: gone"), 3, "host a: gone"),
        (KeyboardInterrupt(), 130, "interrupted; everything that the run opened is closed"),
        (KeyboardInterrupt("host a is left"), 130, "interrupted; host a is left"),
        (RuntimeError("oops"), 3, "internal error: RuntimeError: oops"),
        (typer.Exit(1), 1, ""),
    ],
)
def test_what_ends_a_command_gives_its_status(
    capsys: pytest.CaptureFixture[str], ends: BaseException, status: int, line: str
) -> None:
    with pytest.raises(typer.Exit) as caught, common.exit_status():
        raise ends
    assert caught.value.exit_code == status
    said = capsys.readouterr().err.splitlines()
    assert said[-1:] == ([f"connlab: {line}"] if line else [])


def test_programs_are_told_by_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, common.exit_status(common.Show.ndjson):
        raise LabError("host a: gone")
    assert caught.value.exit_code == 3
    event = json.loads(capsys.readouterr().out)
    assert event == {"event": "error", "exit": 3, "message": "host a: gone"}


def ran(monkeypatch: pytest.MonkeyPatch, run: Run, *words: str) -> Result:
    def no_inventory(*_: Any) -> Any:
        return inventory.Inventory("test", "vm", {}, False, None, None)

    monkeypatch.setattr(inventory, "load", no_inventory)
    monkeypatch.setattr(runner, "run", lambda *_: run)
    return CliRunner().invoke(app, ["run", "million", *words])


@pytest.mark.parametrize("words", [(), ("--json",), ("--progress", "ndjson")])
def test_a_run_ends_with_0_only_where_it_met_its_expectation(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    assert ran(monkeypatch, million(), *words).exit_code == 0
    done = ran(monkeypatch, stopped(), *words)
    assert done.exit_code == 1
    assert "1,000,000 connections held" in done.stdout.replace("\n  ", " ")


@pytest.mark.parametrize(
    ("text", "most", "number"),
    [("1", None, 1), ("20", 20, 20), ("1k", 1_000, 1_000)],
)
def test_counts_go_up_to_the_most_that_there_may_be(text: str, most: Any, number: int) -> None:
    assert common.counted("--top", text, most) == number


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("0", None, "at least 1"),
        ("21", 20, "1 to 20"),
        ("1001", 1_000, "1 to 1,000"),
        ("x", 20, "a whole number such as"),
    ],
)
def test_counts_beyond_it_are_refused(text: str, most: Any, expected: str) -> None:
    with pytest.raises(InputError, match=f"^--top: got '{text}', expected {expected}"):
        common.counted("--top", text, most)


def test_what_hosts_say_acts_on_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    common.say("host a: \x1b[2J\x9b0m gone\r\n")
    assert capsys.readouterr().err == "connlab: host a: \\x1b[2J\\x9b0m gone\\r\\n\n"


def test_a_command_ends_with_the_program_that_follows_it() -> None:
    reading, writing = os.pipe()
    follower = os.fork()
    if not follower:
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            common.end_with_parent()
            os.write(writing, b"x")
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as end:
        assert end.read(1) == b"x"
        os.kill(follower, signal.SIGKILL)
        os.waitpid(follower, 0)
        began = time.monotonic()
        assert end.read(1) == b""  # closed: neither of them is there
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        (["confirmed", "refuted", "depends", "not measurable here"], 0),
        (["confirmed", "inconclusive"], 1),
        (["inconclusive", "failed", "confirmed"], 3),
    ],
)
def test_claims_end_with_what_was_worst(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verdicts: list[str], status: int
) -> None:
    records = [
        Record.model_construct(claim=f"claim{at}", verdict=each) for at, each in enumerate(verdicts)
    ]
    monkeypatch.setattr(claims.Runner, "run", lambda *_: records)
    monkeypatch.setattr(claims.Records, "batch", lambda *_: None)
    monkeypatch.setattr(claims.table, "markdown", lambda _: "table")
    words = ["claims", "run", "--progress", "ndjson", "--results", str(tmp_path)]
    monkeypatch.setattr(claims, "end_with_parent", lambda: None)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == status
    event = json.loads(done.stdout.splitlines()[-1])
    assert list(event["verdicts"].values()) == verdicts
