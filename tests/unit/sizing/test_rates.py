"""How fast a core opens connections, as past runs measured it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from runs import aborted, million, stopped

from bench.results.format import Established, Run, Step
from bench.results.store import Store
from bench.sizing import rates


def fast(number: int, rate: float = 40_000.0, **changes: Any) -> Run:
    run = million()
    measured = run.measured.model_copy(update={"connections_per_second": rate})
    named = {"run_id": f"20260131T12{number:02}00Z-million", "measured": measured}
    return run.model_copy(update={**named, **changes})


def measured(**changes: Any) -> dict[str, Any]:
    return {"measured": fast(0).measured.model_copy(update=changes)}


def held(number: int) -> dict[str, Any]:
    return measured(established=Established(clients=number, servers=number, ss=number))


STEPS = [Step(goal=500_000, held=500_000, lost=0, seconds=5.0)]


def keep(root: Path, *runs: Run) -> Store:
    for run in runs:
        (root / run.run_id).mkdir(parents=True)
        Store(root).write(run)
    return Store(root)


def test_on_one_kernel_the_cores_worked_for_both_ends() -> None:
    assert rates.per_core(fast(0)) == 40_000.0  # 2 ends x 40,000 a second / 2 cores


def test_on_machines_of_their_own_the_end_with_fewer_cores_set_the_pace() -> None:
    assert rates.per_core(fast(0, substrate="remote")) == 20_000.0  # a server of 2 cores


@pytest.mark.parametrize(
    "run",
    [
        stopped(),
        aborted(),
        fast(0, substrate="vm"),
        fast(0, config={"connect_rate": 1_000.0}),
        fast(0, **held(50_000)),
        fast(0, hosts={}),
        fast(0, config={"expect": "limit"}),
        fast(0, **measured(steps=STEPS)),
    ],
    ids=["failed", "aborted", "virtual", "paced", "small", "no hosts", "a limit", "steps"],
)
def test_what_tells_nothing(run: Run, tmp_path: Path) -> None:
    assert rates.per_core(run) is None
    assert rates.of_runs(keep(tmp_path, run)) is None


def test_what_was_held_counts_and_not_what_was_asked_for() -> None:
    asked = million().requested.model_copy(update={"connections": 50_000})
    assert rates.per_core(fast(0, requested=asked, **held(100_000))) == 40_000.0


def test_the_median_of_the_newest(tmp_path: Path) -> None:
    runs = [fast(number, 1_000.0 * number) for number in range(1, 10)]
    found = rates.of_runs(keep(tmp_path, *runs, aborted()))
    assert found is not None
    assert found.per_core == 7_000.0
    assert "median of 5 runs" in found.source
    assert "20260131T120900Z-million" in found.source


def test_one_is_enough_and_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    store = keep(tmp_path, fast(1))
    (tmp_path / "20260131T235900Z-million").mkdir()
    (tmp_path / "20260131T235900Z-million" / "run.json").write_text("{}")
    (tmp_path / "20260131T235901Z-million").mkdir()
    os.close(os.open(tmp_path / "notes", os.O_CREAT))
    found = rates.of_runs(store)
    assert found is not None
    assert found.source.startswith("measured: median of 1 run that passed, newest ")


def test_no_directory_no_rate(tmp_path: Path) -> None:
    assert rates.of_runs(Store(tmp_path / "none")) is None
