"""Churn as it is ordered, and a worker's part of it over real sockets on loopback."""

from __future__ import annotations

import errno
import socket
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.agent import board as cell
from bench.agent import churn, sweep
from bench.agent.attempts import Attempts
from bench.agent.churnorder import ChurnOrder
from bench.agent.client import spread
from bench.agent.task import Misuse


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=7), st.integers(0, 100_000))
def test_a_quota_may_be_more_than_is_held_and_is_spread_exactly(held, amount):
    board = cell.Board(len(held))
    for worker, mine in enumerate(held):
        board.row(worker)[cell.HELD] = mine
    spread(board, amount)
    quotas = board.column(cell.QUOTA).tolist()
    total = sum(held)
    assert sum(quotas) == (amount if total else 0)
    for mine, quota in zip(held, quotas, strict=True):
        assert not total or abs(quota - amount * mine / total) < 1
        assert mine or not quota


def ordered(**command) -> tuple[cell.Board, ChurnOrder]:
    board = cell.Board(3)
    for worker, mine in enumerate((333, 332, 332)):
        board.row(worker)[cell.HELD] = mine
    return board, ChurnOrder(SimpleNamespace(board=board), command)  # type: ignore[arg-type]


def test_an_order_gives_each_worker_its_part_and_lifts_an_earlier_halt():
    board, _ = ordered(rate=9.97, seconds=100)
    assert board.column(cell.QUOTA).tolist() == [333, 332, 332]
    assert board.common[cell.CHURN_MS] == 100_000
    assert board.common[cell.HALT] == board.common[cell.MOST_LOST] == 0


def test_an_answer_tells_this_order_alone():
    board = cell.Board(1)
    row = board.row(0)
    row[cell.HELD], row[cell.OPENED], row[cell.LOST] = 10, 13, 2
    row[cell.ERRORS + errno.ETIMEDOUT], row[cell.LATENCY + 7] = 2, 10
    order = ChurnOrder(SimpleNamespace(board=board), {"rate": 1, "seconds": 1})  # type: ignore[arg-type]
    row[cell.CLOSED] += 5
    row[cell.OPENED] += 4
    row[cell.LOST] += 1
    row[cell.ERRORS + errno.ECONNREFUSED] += 3
    row[cell.LATENCY + 7] += 4
    answer = order.answer()
    assert (answer["closed"], answer["opened"], answer["lost"]) == (5, 4, 1)
    assert (answer["errors"], answer["latency"]) == ({"ECONNREFUSED": 3}, {"7": 4})


@pytest.mark.parametrize(
    "command",
    [
        {"rate": 0, "seconds": 1},
        {"rate": -1.5, "seconds": 1},
        {"rate": float("nan"), "seconds": 1},
        {"rate": float("inf"), "seconds": 1},
        {"rate": 1, "seconds": 86_401},
        {"rate": "1", "seconds": 1},
        {"seconds": 1},
        {"rate": 1},
    ],
)
def test_an_order_that_makes_no_sense_changes_nothing(command):
    board = cell.Board(1)
    board.common[cell.HALT] = 1
    with pytest.raises(Misuse, match=r"^(rate|seconds): .* is not a number above 0, up to "):
        ChurnOrder(SimpleNamespace(board=board), command)  # type: ignore[arg-type]
    assert (board.common[cell.HALT], board.common[cell.CHURN_MS]) == (1, 0)


class Worker:
    """What a client worker holds: connections over loopback, accepted. New ones stay queued."""

    def __init__(self, count: int, **spec) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.held = [socket.create_connection(self.listener.getsockname()) for _ in range(count)]
        self.fds = array("i", [one.detach() for one in self.held])
        self.accepted = [self.listener.accept()[0] for _ in range(count)]
        self.board = cell.Board(1)
        self.row, self.common = self.board.row(0), self.board.common
        self.row[cell.HELD] = count
        self.common[cell.ACTIVE] = 1
        limits = {"connect_timeout_ms": 1000, "retries": 0, "backoff_ms": 1, "max_in_flight": 64}
        self.attempts = Attempts(self.board, self.row, {**limits, **spec})  # type: ignore[arg-type]
        self.away: dict = {}
        self.silent: set[int] = set()
        self.began: list[int] = []

    def churn(self, quota: int, seconds: float, place: int = 0, publish=lambda: None) -> int:
        self.row[cell.QUOTA], self.common[cell.CHURN_MS] = quota, round(seconds * 1000)
        made = churn.Churn(self.fds, self.away, self.silent, self.row, self.common, self.attempts)
        return made.run(place, self.began.append, publish)

    def ends(self) -> list:
        found = []
        for fd in self.fds:
            borrowed = socket.socket(fileno=fd)
            found.append((borrowed.getsockname(), borrowed.getpeername()))
            borrowed.detach()
        return found

    def close(self) -> None:
        for fd in self.fds:
            if fd >= 0:
                socket.socket(fileno=fd).close()
        for one in (*self.accepted, self.listener):
            one.close()


@contextmanager
def unanswered(made: Worker) -> Iterator[Worker]:
    """Have what a worker opens again lead to a listener that answers no SYN: its queue is full."""
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    waiting = [socket.socket() for _ in range(4)]
    for one in waiting:
        one.setblocking(False)
        one.connect_ex(full.getsockname())
    target, real = full.getsockname(), made.attempts.open
    made.attempts.open = lambda ends, *rest: real((ends[0], target), *rest)  # type: ignore[method-assign]
    try:
        yield made
    finally:
        for one in (*waiting, full):
            one.close()
        made.close()


class Clock:
    """The module time, as far as a churn needs it; ``now`` has the one number that it tells."""

    perf_counter_ns = staticmethod(time.perf_counter_ns)

    def __init__(self, now: list[float]) -> None:
        self.monotonic = lambda: now[0]


@pytest.fixture
def worker():
    made = Worker(7)
    yield made
    made.close()


def test_every_place_keeps_its_four_tuple_and_they_take_turns(worker):
    before = worker.ends()
    assert worker.churn(10, 0.02) == 3
    assert worker.ends() == before
    assert (worker.row[cell.CLOSED], worker.row[cell.LOST], len(worker.began)) == (10, 0, 10)
    assert (worker.away, len(set(worker.fds))) == ({}, 7)
    assert worker.churn(5, 0.02, place=3) == 1
    assert worker.ends() == before


def test_a_connection_that_was_silent_is_not_when_it_is_a_new_one(worker):
    worker.silent = {worker.fds[0], worker.fds[6]}
    last = worker.fds[6]
    worker.churn(3, 0.02)
    assert worker.silent == {last}


def test_what_is_behind_is_not_made_up_for_all_at_once(worker):
    """A worker that stood still for most of the time goes on at a batch, not at all of it."""
    stood = []

    def stand_still() -> None:
        if not stood:
            stood.append(time.sleep(0.2))

    worker.churn(1000, 0.1, publish=stand_still)
    assert 0 < worker.row[cell.CLOSED] <= 2 * churn.BATCH


def test_what_cannot_be_opened_again_is_lost(worker):
    worker.listener.close()
    worker.churn(3, 0.02)
    assert sorted(worker.away) == [0, 1, 2]
    assert worker.fds.tolist()[:3] == [-1, -1, -1]
    assert (worker.row[cell.CLOSED], worker.row[cell.LOST]) == (3, 3)
    assert worker.row[cell.ERRORS + errno.ECONNREFUSED] == 3
    # A place that is empty is passed over, not closed twice.
    worker.churn(3, 0.02)
    assert (worker.row[cell.CLOSED], worker.row[cell.LOST]) == (3, 3)


def test_no_more_are_under_way_than_the_window_allows():
    most = []
    with unanswered(Worker(5, max_in_flight=2, connect_timeout_ms=150)) as made:
        made.churn(5, 0.05, publish=lambda: most.append(len(made.attempts)))
        assert max(most) == 2
        assert made.row[cell.LOST] == len(made.away) > 0
        assert made.row[cell.ERRORS + errno.ETIMEDOUT] == made.row[cell.LOST]


def test_a_halt_gives_up_what_is_under_way_and_counts_it_as_lost():
    with unanswered(Worker(5, max_in_flight=2, connect_timeout_ms=60_000)) as made:

        def halt() -> None:
            assert not made.common[cell.HALT]  # nothing goes on after it
            made.common[cell.HALT] = int(len(made.attempts) == 2)

        made.churn(1_000_000, 1000, publish=halt)
        assert (made.row[cell.CLOSED], made.row[cell.LOST], made.began) == (2, 2, [])
        assert len(made.attempts) == 0
        assert sorted(made.away) == [0, 1]


def test_what_the_server_closed_is_lost_and_not_opened_again(worker):
    fd = worker.fds[0]
    worker.accepted[0].close()
    assert worker.churn(3, 0.02) == 3
    assert worker.fds[0] == fd
    assert sweep.dead(worker.fds) == [fd]
    assert (worker.row[cell.CLOSED], len(worker.began)) == (2, 2)


def test_a_quota_is_spread_over_its_time(worker, monkeypatch):
    """Eighths of a second, by a clock that goes on when the worker has published."""
    now, closed = [100.0], []
    monkeypatch.setattr(churn, "time", Clock(now))

    def publish() -> None:
        closed.append(worker.row[cell.CLOSED])
        now[0] += 0.125

    worker.churn(8, 1, publish=publish)
    assert closed[:9] == list(range(9))
