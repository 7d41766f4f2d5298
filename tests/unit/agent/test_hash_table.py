"""What is held for a figure is closed when the figure is told."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
from typing import Any

import pytest

from bench.agent.memory import Memory
from bench.agent.trials import hash_table


def open_sockets() -> int:
    found = 0
    for one in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found += os.readlink(f"/proc/self/fd/{one}").startswith("socket:")
    return found


def test_a_worker_closes_both_ends_when_told_to() -> None:
    theirs, orders = os.pipe()
    answers, out = os.pipe()
    before = open_sockets()
    work = threading.Thread(target=hash_table._work, args=(theirs, out, 0, 20))
    work.start()
    with os.fdopen(answers, "rb") as lines:
        os.write(orders, b"O" + struct.pack("<I", 0))
        assert json.loads(lines.readline())["figures"]
        assert open_sockets() == before + 40
        os.write(orders, b"C" + struct.pack("<I", 0))
        assert json.loads(lines.readline()) == {"figures": []}
        assert open_sockets() == before
    os.close(orders)
    work.join()
    os.close(theirs)
    os.close(out)


def test_all_is_closed_before_figures_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    closed: list[int] = []

    class Worker:
        def __init__(self, number: int, share: int) -> None:
            self.number = number

        def ask(self, order: bytes, count: int = 0) -> list[float]:
            if order == b"C":
                assert b"chunks" not in os.read(reading, 1 << 16)
                os.write(writing, b"\n")
                closed.append(self.number)
            return [1.0]

    monkeypatch.setattr(hash_table, "_Worker", Worker)
    monkeypatch.setattr(hash_table, "enter", lambda entries: entries)
    monkeypatch.setattr(hash_table.workers, "open_files", lambda limit: None)
    monkeypatch.setattr(hash_table.resource, "getrlimit", lambda limit: (264, 264))
    hash_table._hold(writing, 256, 200, 10)
    assert closed == [0, 1]
    assert b'"held": 200' in os.read(reading, 1 << 16)
    os.close(reading)
    os.close(writing)


def test_no_table_is_filled_that_would_take_the_last_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """9 KiB a connection, and 512 MiB that stay free."""
    told: list[dict[str, Any]] = []

    class FakeGauge:
        free = 1_000 * 9 + 512 * 1024

        def read(self) -> Memory:
            return Memory(available=1 << 40, free=self.free, slab=0)

        def close(self) -> None:
            pass

    class FakeStage:
        def tell(self, **figures: Any) -> None:
            told.append(figures)

        def step(self) -> None:
            return None

    monkeypatch.setattr(hash_table, "Gauge", FakeGauge)
    stage: Any = FakeStage()
    hash_table.run(stage, {"connections": 1_000, "echoes": 10})
    FakeGauge.free -= 1
    hash_table.run(stage, {"connections": 1_000, "echoes": 10})
    assert told[0] == {"reason": ""}
    assert told[1] == {"reason": "520 MiB are free, 520 MiB are needed"}
