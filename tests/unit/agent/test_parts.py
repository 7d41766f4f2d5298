"""Board, pace and rounds."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.agent import board, rounds, sweep
from bench.agent.workers import DONE, PASS


def test_the_board_sums_what_its_rows_say():
    made = board.Board(3)
    for worker in range(3):
        row = made.row(worker)
        row[board.HELD] = 10 + worker
        row[board.ERRORS + 111] = worker
        row[board.LATENCY + 7] = 2
    assert made.total(board.HELD) == 33
    assert made.errors() == {"ECONNREFUSED": 3}
    assert made.latency() == {"7": 6}
    assert made.column(board.HELD).tolist() == [10, 11, 12]


def test_errors_of_the_parent_stand_beside_its_workers():
    made = board.Board(2)
    made.row(1)[board.ERRORS + 24] = 3
    made.add({11: 1})
    made.add({11: 2, 24: 1})
    assert made.errors() == {"EAGAIN": 3, "EMFILE": 4}


def test_no_cell_of_the_board_is_used_twice():
    row = ["HELD", "OPENED", "CLOSED", "LOST", "RETRIED", "IN_FLIGHT", "ASKED", "ANSWERED"]
    row += ["WRONG", "DROPPED", "ALIVE", "DEAD", "FULL", "TRIED", "QUOTA", "GOAL", "SILENT"]
    assert sorted(getattr(board, name) for name in row) == list(range(board.ERRORS))
    common = ["HALT", "ACTIVE", "ANSWER", "HOW", "RATE", "PATIENCE", "MOST_LOST", "FRESH"]
    common += ["DROP", "STRETCH", "PAUSE", "NUMBER", "WINDOW", "SEQUENTIAL", "SILENCES", "OVER"]
    assert len({getattr(board, name) for name in common}) == len(common) <= board.COMMON


def test_an_unknown_errno_keeps_its_number():
    assert board.name(11) == "EAGAIN"
    assert board.name(250) == "E250"


@given(
    st.floats(1, 1e6),
    st.lists(st.tuples(st.integers(0, 500), st.floats(0, 0.5)), max_size=30),
)
def test_a_pace_never_grants_more_than_its_rate(rate, asked):
    now = [100.0]
    real = time.monotonic
    time.monotonic = lambda: now[0]
    try:
        pace, granted, burst = sweep.Pace(64), 0, 64
        for wanted, passed in asked:
            now[0] += passed
            got = pace.take(wanted, rate)
            assert 0 <= got <= wanted
            granted += got
            assert granted <= rate * (now[0] - 100.0) + 1e-3
            assert got <= burst
    finally:
        time.monotonic = real


def test_no_rate_is_no_limit():
    assert sweep.Pace(1).take(5000, 0) == 5000


class FakeCrew:
    def __init__(self, count):
        self.pids = {100 + worker: worker for worker in range(count)}
        self.told = []

    def tell(self, worker, order):
        self.told.append((worker, order))


def make_round(count, width):
    crew, common, ended = FakeCrew(count), [0] * board.COMMON, []
    made = rounds.Round(crew, common, b"R", width, lambda: ended.append(True))
    made.begin()
    return made, crew, common, ended


@pytest.mark.parametrize("gap", [False, True])
def test_descriptors_are_closed_to_the_last_and_no_others(gap):
    kept = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    closed = [fd for fd in kept[:4] if not gap or fd != kept[1]]
    sweep.close(closed)
    left = [fd for fd in kept if Path(f"/proc/self/fd/{fd}").exists()]
    assert left == [fd for fd in kept if fd not in closed]
    sweep.close(left)


@given(st.integers(1, 20), st.integers(1, 6), st.data())
def test_a_round_reaches_every_worker_and_ends_once(count, width, data):
    made, crew, common, ended = make_round(count, width)
    busy, passed, seen = set(), set(), 0
    while not ended:
        busy |= {worker for worker, _ in crew.told[seen:]}
        seen = len(crew.told)
        assert len(busy - passed) <= width
        assert common[board.ACTIVE] == len(busy - passed)
        worker = data.draw(st.sampled_from(sorted(busy)))
        what = data.draw(st.sampled_from(["pass", "done", "lost"]))
        if what == "pass" and worker not in passed:
            passed.add(worker)
            made.rung(worker, PASS)
        elif what == "lost":
            busy.discard(worker)
            del crew.pids[100 + worker]
            made.lost(worker)
        else:
            busy.discard(worker)
            made.rung(worker, DONE)
    assert ended == [True]
    assert sorted(worker for worker, _ in crew.told) == list(range(count))


def test_a_round_of_nobody_ends_at_once():
    assert make_round(0, 2)[3] == [True]
