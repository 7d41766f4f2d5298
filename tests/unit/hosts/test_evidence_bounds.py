"""Evidence has an end, which is the same for whoever sends, reads and keeps it."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bench import wire
from bench.agent import probe
from bench.agent.probe import Unreadable
from bench.hosts import messages
from bench.results.store import Store

MOST = 4 << 20


def collected(monkeypatch: pytest.MonkeyPatch, text: str) -> Any:
    monkeypatch.setattr(probe, "SOURCES", {"nstat": lambda: text})
    return probe.collect("peak", None, "src", "established", list, [0])


def test_what_the_agent_lets_through_is_read_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for text in ("x" * MOST, "€" * (MOST // 3)):
        event = messages.read(wire.encode(collected(monkeypatch, text)), 0)
        store = Store(tmp_path)
        run_id, folder = store.create("million", datetime.now(UTC))
        store.write_raw(run_id, "h", "peak", event["texts"])
        assert (folder / "raw" / "h" / "peak" / "nstat").stat().st_size == len(text.encode())


@pytest.mark.parametrize("text", ["x" * (MOST + 1), "€" * (MOST // 3 + 1)], ids=["x", "€"])
def test_a_longer_text_is_a_gap_in_the_evidence(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    event = collected(monkeypatch, text)
    assert (event["texts"], event["missing"]) == ({}, {"nstat": "nstat: more than 4194304 bytes"})


def test_a_tool_that_prints_more_is_named() -> None:
    argv = [sys.executable, "-c", "print('x' * 999)"]
    assert probe.output(argv, 1000) == "x" * 999 + "\n"
    with pytest.raises(Unreadable, match=r"^.*python.*: more than 999 bytes$"):
        probe.output(argv, 999)
