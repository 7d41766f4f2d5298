"""Namespaces with tables of their own, filled over loopback; nothing of them stays."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from agents import running, until
from beds import Bed

from bench.errors import LabError
from bench.hosts.trials import Trials

KEY = "net.ipv4.tcp_child_ehash_entries"


@pytest.fixture
def trials(bed: Bed):
    with Trials(bed.connect) as made:
        yield made


def begin(trials: Trials, bed: Bed, **args):
    usual = {"connections": 1_200, "echoes": 500}
    return trials.begin(bed.inventory().hosts["server"], "hash_table", **{**usual, **args})


def descendants(pid: int) -> list[int]:
    found = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [one for child in found for one in descendants(child)]


def test_each_table_is_as_large_as_asked_for(trials: Trials, bed: Bed) -> None:
    trial = begin(trials, bed)
    for entries in (256, 4_096):
        told = trial.go(entries=entries)
        assert (told["reason"], told["entries"], told["held"]) == ("", entries, 1_200)
        assert [step["held"] for step in told["connect_us"]] == [
            1_200 * step // 8 for step in range(1, 9)
        ]
        assert all(step["us"] > 0 for step in told["connect_us"]) and told["echo_us"] > 0
    assert bed.net.run("server", "sysctl", "-n", KEY).strip() == "0"
    assert not descendants(bed.agent_pid("server"))
    assert not bed.net.run("server", "ss", "-Htan").strip()


def test_a_size_that_no_table_has_is_told(trials: Trials, bed: Bed) -> None:
    assert "got one of 512" in begin(trials, bed).go(entries=300)["reason"]
    assert bed.net.run("server", "sysctl", "-n", KEY).strip() == "0"


def test_more_than_memory_holds_is_told(trials: Trials, bed: Bed) -> None:
    with pytest.raises(LabError, match="connections: got 2000000, expected 1 to"):
        begin(trials, bed, connections=2_000_000)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_however_it_ends(how: int, trials: Trials, bed: Bed) -> None:
    trial = begin(trials, bed, connections=50_000)
    pid = bed.agent_pid("server")
    trial.agent.tell({"op": "go", "entries": 65_536})
    assert until(lambda: len(descendants(pid)) >= 2)  # who holds the namespace, and a worker
    made = descendants(pid)
    os.kill(pid, how)
    assert until(lambda: not any(map(running, [pid, *made])), 15)
    # One that is killed may not have put the setting back: the next guard does.
    with Trials(bed.connect) as next_one:
        next_one.begin(bed.inventory().hosts["server"], "guard")
    assert bed.net.run("server", "sysctl", "-n", KEY).strip() == "0"
