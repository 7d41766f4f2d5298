"""What a person, or the program that reads the events, sees of a run."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from bench.run import progress
from bench.run.curve import Progress

RAMP = Progress("ramp", 250_000, 1_000_000, 50_000.4, 1_250, 20 * 2**20, 15.0)


def test_a_line_of_the_ramp() -> None:
    assert progress.line(RAMP) == (
        "ramp: 250,000 / 1,000,000 held, 50,000 conn/s, p99 1.2 ms, MemAvailable 20.0 GiB, "
        "15 s left"
    )


def test_a_line_of_the_hold() -> None:
    now = replace(RAMP, phase="hold", held=1_000_000, seconds_left=None)
    assert progress.line(now) == "hold: 1,000,000 held, MemAvailable 20.0 GiB"


FORECAST = Progress("forecast", 0, 1_000, 0.0, 0, 4_096, None, "x: 1 MiB free [then]")


def test_a_note_stands_for_itself() -> None:
    assert progress.line(FORECAST) == "forecast: x: 1 MiB free [then]"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_note_stays_on_the_screen(terminal: bool) -> None:
    out = io.StringIO()
    with progress.view("auto", Console(file=out, force_terminal=terminal, width=20)) as update:
        update(FORECAST)
        update(RAMP)
    assert "forecast: x: 1 MiB free [then]\n" in out.getvalue()


def test_a_note_is_an_event_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.view("ndjson", Console()) as update:
        update(FORECAST)
    event = json.loads(capsys.readouterr().out)
    assert (event["event"], event["text"]) == ("progress", progress.line(FORECAST))


def test_a_note_is_shown_between_two_lines() -> None:
    """A host that is silent is mentioned once: not to be dropped for coming soon after a line."""
    out = io.StringIO()
    silent = replace(RAMP, note="no word from server1 for 5 s")
    with progress.view("plain", Console(file=out)) as update:
        for now in (RAMP, silent, RAMP):
            update(now)
    assert [line.partition(": ")[2][:7] for line in out.getvalue().splitlines()] == [
        "250,000",
        "no word",
    ]


def test_lines_come_every_two_seconds_and_at_once_in_a_new_phase(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moment = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: moment[0])
    out = io.StringIO()
    with progress.view("plain", Console(file=out)) as update:
        for seconds, phase in ((0, "ramp"), (1, "ramp"), (2, "ramp"), (2.5, "hold"), (3, "hold")):
            moment[0] = 100.0 + seconds
            update(replace(RAMP, phase=phase))
    assert [line.split(":")[0] for line in out.getvalue().splitlines()] == ["ramp", "ramp", "hold"]


def test_a_terminal_gets_a_bar() -> None:
    out = io.StringIO()
    with progress.view("auto", Console(file=out, force_terminal=True, width=120)) as update:
        update(RAMP)
    assert "250,000 / 1,000,000 held" in out.getvalue()
    assert "━" in out.getvalue()


def test_events_are_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.view("ndjson", Console()) as update:
        update(RAMP)
    event = json.loads(capsys.readouterr().out)
    assert (event["event"], event["held"], event["text"]) == (
        "progress",
        250_000,
        progress.line(RAMP),
    )


def test_a_reader_that_is_gone_interrupts_the_run() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    script = (
        "from bench.run.progress import emit\n"
        "try:\n    emit({'event': 'x'})\nexcept KeyboardInterrupt:\n    raise SystemExit(130)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (130, b"")
