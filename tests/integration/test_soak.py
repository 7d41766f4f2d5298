"""What ``make soak`` shows at length, in short: many client hosts, and runs in a row."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator

import pytest

from bench.hosts.session import Connect
from bench.hosts.transport import Link
from bench.inventory import Host, Inventory
from bench.perf import soak
from bench.results.format import Run
from bench.run import runner

Lab = tuple[Inventory, Connect]


@pytest.fixture
def hosts() -> Iterator[Lab]:
    with soak.bare(f"soak-t{os.getpid()}", 2, 4, 1_000) as made:
        yield made


def test_eight_client_hosts_take_little_longer_than_one(hosts: Lab) -> None:
    inventory, connect = hosts
    small = soak.many(inventory, 8)
    assert [host.name for host in small.of("clients")] == [
        f"client{machine}-{at}" for machine in (1, 2) for at in (1, 2, 3, 4)
    ]
    assert len({host.data_addresses for host in small.of("clients")}) == 8
    said: list[str] = []
    (line,) = soak.many_hosts(inventory, connect, said.append, count=8, connections=805)
    assert line.startswith("PASS: 8 client hosts: a whole run in "), (line, said)
    assert "pass: 805 connections held by all three counts" in said[1]


def test_runs_in_a_row_leave_nothing(hosts: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    render, threads = runner.page.render, set()

    def seen(run: Run) -> str:
        threads.add(threading.current_thread())
        return render(run)

    monkeypatch.setattr(runner.page, "render", seen)
    (line,) = soak.in_a_row(*hosts, 3, said.append, connections=305)
    assert line.startswith("PASS: 3 runs in a row: "), line
    assert "0 children, " in line and "0 agents, and no more after them" in line
    assert len(said) == 3
    assert len(threads) == 1  # matplotlib keeps the files of its fonts open for each


def test_a_thread_a_descriptor_and_a_directory_for_each_run_are_noticed(
    hosts: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.perf.residue.SETTLE_SECONDS", 0.5)
    inventory, connect = hosts
    over, kept = threading.Event(), []

    def leaking(host: Host) -> Link:
        thread = threading.Thread(target=over.wait, name="leaked")
        thread.start()
        kept.append(
            (thread, os.open("/dev/null", os.O_RDONLY), tempfile.mkdtemp(prefix="connlab."))
        )
        return connect(host)

    try:
        (line,) = soak.in_a_row(inventory, leaking, 1, lambda text: None, connections=305)
    finally:
        over.set()
        for thread, fd, folder in kept:
            thread.join()
            os.close(fd)
            os.rmdir(folder)
    assert line.startswith("FAIL: 1 runs in a row: threads: "), line
    assert ": leaked, leaked, leaked; descriptors: " in line
    assert ": /dev/null, /dev/null, /dev/null; directories: " in line


def test_a_run_that_fails_is_told(hosts: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    real = soak.small_run

    def failing(inventory: Inventory, connect: Connect, connections: int) -> object:
        done = real(inventory, connect, connections)
        return done.model_copy(update={"verdict": "fail", "reason": "why"})

    monkeypatch.setattr(soak, "small_run", failing)
    assert soak.in_a_row(*hosts, 3, lambda text: None, connections=100) == ["FAIL: run 1 of 3: why"]
    assert soak.many_hosts(*hosts, lambda text: None, count=2, connections=100) == [
        "FAIL: 1 client hosts: why"
    ]
