"""Whole runs that look for their limit, over real agents with real limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from agents import CLIENT
from beds import Bed

from bench.perf.netns import Namespaces
from bench.results.format import Run

SOFT = 300
OWN = 13
"""Descriptors that a worker has open beside its connections, at most."""


class Ceiling(Bed):
    """Runs with limits of their own for a host's agents."""

    def find(self, clients: Sequence[str] = (CLIENT,), **fields: Any) -> Run:
        usual = {"expect": "limit", "retries": 1, "connect_timeout_ms": 500, "step": 0.25}
        done = self.run(clients, **{**usual, **fields})
        counts, steps = done.measured.established, done.measured.steps
        assert counts.clients == counts.servers == counts.ss == steps[-1].held, done.reason
        assert [one.goal for one in steps] == sorted({one.goal for one in steps})
        assert (done.measured.lost, done.measured.left_after) == (0, 0)
        live = done.measured.liveness
        assert 0 < live.asked == live.answered
        assert self.clean()
        return done


@pytest.fixture
def bed(net: Namespaces, tmp_path: Path) -> Ceiling:
    return Ceiling(net, tmp_path / "results")


@pytest.mark.parametrize("watch", ["epoll", "none"])
def test_descriptors_of_the_servers(bed: Ceiling, watch: str) -> None:
    bed.words["server"] = ["prlimit", f"--nofile={SOFT}:1000"]
    done = bed.find(nofile="soft", workers=2, watch=watch, resolution=0.02)
    assert 2 * (SOFT - OWN) <= done.measured.established.ss < 2 * SOFT
    assert 0 <= done.predicted.limits["nofile"] - done.measured.established.ss <= 2
    assert done.measured.steps[-1].errors["EMFILE"] > 0
    assert (done.verdict, done.bound_by) == ("pass", "nofile"), done.reason
    notes = [now.note for now in bed.seen if now.phase == "step"]
    assert notes[-1].endswith("; that is the limit")


@pytest.mark.parametrize("processes", [1, 3])
def test_descriptors_of_so_many_server_processes(bed: Ceiling, processes: int) -> None:
    done = bed.find(nofile=SOFT, server_workers=processes, echo_timeout_ms=500)
    each = done.hosts["server"].phases["peak"].held_each
    assert len(set(each)) == 1 and len(each) == processes
    assert SOFT - OWN - 1 <= each[0] < SOFT
    assert sum(each) == done.measured.established.ss == done.predicted.limits["nofile"]
    assert (done.verdict, done.bound_by) == ("pass", "nofile"), done.reason
    assert done.diagnosis and done.diagnosis.end == "server"


def test_descriptors_of_the_clients(bed: Ceiling) -> None:
    bed.words["client"] = ["prlimit", f"--nofile={SOFT}:1000"]
    done = bed.find(nofile="soft", workers=3, max_in_flight=16)
    assert 3 * (SOFT - OWN) <= done.measured.established.ss < 3 * SOFT
    assert 0 <= done.predicted.limits["nofile"] - done.measured.established.ss <= 3
    assert done.measured.steps[-1].errors["EMFILE"] > 0
    assert (done.verdict, done.bound_by) == ("pass", "nofile"), done.reason


def test_source_ports_left_to_the_kernel(bed: Ceiling) -> None:
    bed.net.run("client", "sysctl", "-qw", "net.ipv4.ip_local_port_range=20001 20500")
    done = bed.find([CLIENT, "198.18.1.2"], source_ports="kernel", max_in_flight=32)
    assert done.measured.established.ss == 1000
    assert done.measured.steps[-1].errors["EADDRNOTAVAIL"] > 0
    assert done.verdict == "pass", done.reason


def test_all_that_were_planned(bed: Ceiling) -> None:
    done = bed.find(connections=2000, step=0.1)
    assert [one.held for one in done.measured.steps] == [200 * n for n in range(1, 11)]
    assert all(one.errors == {} and one.lost == 0 for one in done.measured.steps)
    assert done.verdict == "pass", done.reason


def test_more_than_there_are_tuples_for(bed: Ceiling) -> None:
    ports = {"first_client_port": 20001, "last_client_port": 21000}
    done = bed.find(connections=50_000, step=0.01, **ports)
    assert done.measured.established.ss == 1000
    assert [one.held for one in done.measured.steps] == [500, 1000]


def test_the_memory_floor(bed: Ceiling) -> None:
    with bed.memory(1_000 + 192):
        done = bed.find(
            connections=60_000, memory_floor_mib=1_000, step=0.05, connect_rate=5_000, watch="none"
        )
    assert 0 < done.measured.established.ss < 60_000
    assert (done.verdict, done.bound_by) == ("pass", "memory"), done.reason
