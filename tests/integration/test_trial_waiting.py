"""Watching real connections of a host with itself."""

from __future__ import annotations

import os
import signal

import pytest
from agents import running, until
from beds import Bed

from bench.errors import LabError
from bench.hosts.trials import Trial, Trials


@pytest.fixture
def trials(bed: Bed):
    with Trials(bed.connect) as made:
        yield made


def begun(trials: Trials, bed: Bed, **changed: object) -> Trial:
    args = {"milliseconds": 2, **changed}
    return trials.begin(bed.inventory().hosts["server"], "waiting", **args)


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(one) for one in file.read().split()]


def test_select_stops_at_its_limit_and_the_others_go_on(trials: Trials, bed: Bed) -> None:
    trial = begun(trials, bed)
    assert trial.first["refused"] == 1024  # FD_SETSIZE
    assert "out of range" in trial.first["words"]
    assert trial.first["kernel_goes_on"] is True
    few, many = trial.go(watched=50), trial.go(watched=1500)
    assert (few["watched"], many["watched"]) == (50, 1500)
    established = bed.net.run("server", "ss", "-Htn", "state", "established").splitlines()
    assert len(established) == 2 * 1500
    assert set(few) >= {"select", "poll", "epoll"}
    assert "select" not in many
    assert all(many[name]["wall_us"] > 0 for name in ("poll", "epoll"))
    trial.end()
    assert until(bed.clean)


def test_nothing_stays_when_it_is_terminated(trials: Trials, bed: Bed) -> None:
    trial = begun(trials, bed)
    trial.go(watched=200)
    pid = bed.agent_pid("server")
    [child] = children(pid)
    os.kill(pid, signal.SIGTERM)
    assert until(lambda: not running(pid) and not running(child))
    assert until(bed.clean)


def test_a_child_that_died_is_a_fault(trials: Trials, bed: Bed) -> None:
    trial = begun(trials, bed)
    trial.go(watched=10)
    [child] = children(bed.agent_pid("server"))
    os.kill(child, signal.SIGKILL)
    with pytest.raises(LabError, match="waiting: "):
        trial.go(watched=20)


@pytest.mark.parametrize(
    ("step", "line"),
    [({"watched": 0}, "watched: got 0, expected above 0"), ({"watched": 10**9}, "at most")],
)
def test_what_cannot_be_watched_is_refused(trials: Trials, bed: Bed, step, line: str) -> None:
    trial = begun(trials, bed)
    with pytest.raises(LabError, match=line):
        trial.go(**step)


def test_an_endless_batch_is_refused(trials: Trials, bed: Bed) -> None:
    with pytest.raises(LabError, match="milliseconds: got 5000, expected"):
        begun(trials, bed, milliseconds=5000)
