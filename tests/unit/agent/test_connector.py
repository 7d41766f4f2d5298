"""A client worker's pace: its part of the rate and of the window, its retries, its end."""

import errno
import os
import socket

import pytest

from bench import wire
from bench.agent import attempts, board, connector


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(attempts.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def worker(clock):
    made = board.Board(2)
    spec = {
        "nonce": "00" * 16,
        "connect_timeout_ms": 1000,
        "connect_rate": 30.0,
        "max_in_flight": 7,
        "retries": 2,
        "backoff_ms": 50,
        "source_ports": "plan",
    }
    block = connector.Block("127.0.0.1", 20_000, 100, ("127.0.0.1", 1), 0)
    one = connector.Connector(made, 0, -1, lambda what: None, spec, [block])
    one.made, one.spec = made, spec
    return one


def test_workers_share_the_rate(worker, monkeypatch):
    asked = []
    monkeypatch.setattr(worker._pace, "take", lambda wanted, rate: asked.append(rate) or 0)
    worker._goal = 10
    worker.made.common[board.ACTIVE] = 3
    worker._start()
    assert set(asked) == {10.0}
    worker.made.common[board.ACTIVE] = 0
    worker._start()
    assert asked[-1] == 30.0


def test_workers_share_the_window_and_what_others_have_under_way_is_theirs(worker):
    worker.made.common[board.ACTIVE] = 2
    assert worker._attempts.window() == 4  # of 7, rounded up
    worker.made.row(1)[board.IN_FLIGHT] = 5
    assert worker._attempts.window() == 2
    worker.made.row(1)[board.IN_FLIGHT] = 9
    assert worker._attempts.window() == 0
    worker.made.row(1)[board.IN_FLIGHT] = 0
    worker._attempts._retries = [(0.0, 1, 1), (0.0, 2, 1), (0.0, 3, 1)]
    assert worker._attempts.window() == 1
    # What this worker itself has put on the board is not that of others.
    worker.made.row(0)[board.IN_FLIGHT] = 3
    assert worker._attempts.window() == 1


def test_the_wait_before_a_retry_doubles(worker, clock):
    for tries in (0, 1):
        worker._attempts.failed(errno.ECONNREFUSED, 7, tries)
    retries = sorted(worker._attempts._retries)
    waits = [(due - clock.now, number, tries) for due, number, tries in retries]
    assert waits == [(pytest.approx(0.05), 7, 1), (pytest.approx(0.1), 7, 2)]
    assert worker.made.errors() == {"ECONNREFUSED": 2}
    assert (worker.made.total(board.RETRIED), worker.made.total(board.LOST)) == (2, 0)


def test_after_the_last_retry_a_connection_is_lost(worker):
    worker._attempts.failed(errno.ETIMEDOUT, 7, 2)
    assert worker._attempts._retries == []
    assert (worker.made.total(board.RETRIED), worker.made.total(board.LOST)) == (0, 1)


def test_a_socket_that_failed_is_closed(worker, clock):
    """A port where nobody listens refuses at once; the descriptor is free again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        target = free.getsockname()
    before = len(os.listdir("/proc/self/fd"))
    option = (socket.SOL_SOCKET, socket.SO_REUSEADDR)
    # Not asked twice, as on a network that answers later.
    made = attempts._socket.socket(socket.AF_INET, attempts.KIND, 0)
    made.connect_ex(target)
    worker._attempts.add(made, 0, 5, 2)
    del made
    (settled,) = worker._attempts.settle(5, lambda number: target)
    assert (settled[0], settled[2:]) == (errno.ECONNREFUSED, (0, 5, 2))
    assert settled[1].fileno() == -1
    assert worker._attempts.open((("127.0.0.1", 0), target), option, 0, 6, 2) is None
    assert len(os.listdir("/proc/self/fd")) == before
    assert worker.made.errors() == {"ECONNREFUSED": 1}


def test_a_ramp_ends_with_the_connection_that_makes_the_most_lost(worker):
    worker.made.common[board.MOST_LOST] = 3
    worker.made.row(1)[board.LOST] = 1
    worker._attempts.failed(errno.ETIMEDOUT, 1, 2)
    assert not worker.made.common[board.HALT]
    worker._attempts.failed(errno.ETIMEDOUT, 2, 2)
    assert worker.made.common[board.HALT]


def test_without_such_a_number_it_goes_on(worker):
    for number in range(5):
        worker._attempts.failed(errno.ETIMEDOUT, number, 2)
    assert not worker.made.common[board.HALT]


def test_retries_that_the_pace_does_not_grant_wait_on(worker, clock, monkeypatch):
    tried = []
    monkeypatch.setattr(worker, "_try_again", lambda number, tries: tried.append(number))
    monkeypatch.setattr(worker._pace, "take", lambda wanted, rate: min(wanted, 1))
    for entry in ((99.0, 4, 1), (98.0, 3, 1), (101.0, 5, 1)):
        worker._attempts.put_back([entry])
    assert worker._start() == 1
    assert tried == [3]
    assert sorted(number for _, number, _ in worker._attempts._retries) == [4, 5]


def test_latencies_are_microseconds(worker, monkeypatch):
    ticks = iter(range(0, 10**9, 250_000))
    monkeypatch.setattr(connector, "_clock", lambda: next(ticks))
    worker._names = connector._left_to_kernel
    with socket.create_server(("127.0.0.1", 0)) as door:
        worker._blocks = [worker._blocks[0]._replace(target=door.getsockname())]
        worker._goal = 3
        assert worker._fresh(3) == 3
        worker._timed(next(ticks) - 750_000)  # and of one that was under way: 250 more by now
    worker._held.reset_all()
    assert worker._latency[wire.bucket_of(250)] == 3
    assert worker._latency[wire.bucket_of(1000)] == 1
    assert sum(worker._latency) == 4
