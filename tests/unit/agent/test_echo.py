"""Echoes of a client worker: who answers in time, and how long it waits for who does not."""

import contextlib
import os
import socket
import threading
import time

import pytest

from bench import wire
from bench.agent import board, holder
from bench.agent.commands import PATIENCE_MS, Commands
from bench.agent.task import Misuse, Task

NONCE = "00" * 16


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def answer_after(theirs, seconds):
    def body():
        time.sleep(seconds)
        theirs.send(wire.echo_reply(NONCE, theirs.recv(wire.ECHO_BYTES)))

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def held(ours, patience_ms):
    made = board.Board(1)
    made.common[board.PATIENCE] = patience_ms
    one = holder.Holder(made.row(0), made.common, NONCE, 7)
    one.fds.append(ours.fileno())
    made.row(0)[board.QUOTA] = 1
    return made, one


def test_a_late_answer_counts_within_the_patience_that_was_ordered(pair):
    made, one = held(pair[0], 20_000)
    thread = answer_after(pair[1], 0.3)
    one.echo()
    thread.join()
    assert (made.total(board.ASKED), made.total(board.ANSWERED)) == (1, 1)


def test_an_answer_that_does_not_come_in_time_is_none(pair):
    made, one = held(pair[0], 50)
    began = time.monotonic()
    one.echo()
    assert time.monotonic() - began < 5
    assert (made.total(board.ASKED), made.total(board.ANSWERED)) == (1, 0)


@pytest.fixture
def pairs():
    """Connections by number: the descriptor of ours, the socket of theirs."""
    with contextlib.ExitStack() as stack:

        def make(count):
            made = []
            for number in range(count):
                ours, theirs = map(stack.enter_context, socket.socketpair())
                made.append(((number, ours.fileno()), theirs))
            return made

        yield make


def reply(theirs, number):
    theirs.send(wire.echo_reply(NONCE, wire.echo_request(NONCE, number)))


def test_who_does_not_answer_is_found(pairs):
    (well, wrong, closed, silent) = pairs(4)
    reply(well[1], 0)
    wrong[1].send(b"x" * wire.ECHO_BYTES)
    closed[1].close()
    asking = holder.Asking(NONCE)
    numbered = [one for one, _ in (well, wrong, closed, silent)]
    found = asking.who_is_silent(numbered, patience=0.1)
    assert found == {closed[0][1], silent[0][1]}
    assert (asking.answered, asking.wrong) == (1, 1)
    assert silent[1].recv(100) == wire.echo_request(NONCE, 3)


def test_an_answer_after_a_lull_is_still_one(pair):
    asking = holder.Asking(NONCE)
    thread = answer_after(pair[1], 2 * holder.LULL_MS / 1000)
    assert asking.who_is_silent([(5, pair[0].fileno())], patience=20.0) == set()
    thread.join()
    assert asking.answered == 1


class FakeTime:
    """Time passes only while one waits for answers, and those come that were laid down."""

    def __init__(self, monkeypatch):
        self.now, self.asked, self.answers = 100.0, [], {}
        monkeypatch.setattr(holder.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(holder.sweep, "ready", self.ready)

    def ready(self, fds, timeout_ms):
        self.asked.append(len(fds))
        coming = [fd for fd in fds if fd in self.answers]
        self.now += self.answers[coming[0]] if coming else timeout_ms / 1000
        return [(fd, 1) for fd in coming]


def test_windows_grow_as_long_as_nobody_answers(monkeypatch, pairs):
    made = pairs(8)
    monkeypatch.setattr(holder, "WINDOW", 1)
    monkeypatch.setattr(holder, "LARGEST_WINDOW", 2)
    fake = FakeTime(monkeypatch)
    for (number, fd), theirs in made[4:5]:
        reply(theirs, number)
        fake.answers[fd] = 0.01
    asking = holder.Asking(NONCE)
    silent = asking.who_is_silent([one for one, _ in made], patience=0.0)
    assert silent == {fd for (number, fd), _ in made if number != 4}
    # 1, 2, 2 of which one answers and one is left, then from 1 again.
    assert fake.asked == [1, 2, 2, 1, 1, 2]


def test_the_patience_is_cut_where_others_answer_quickly(monkeypatch, pairs):
    known, silent = pairs(2)
    for others, least, most in (([known[0]], 1.0, 3.0), ([], 60.0, 61.0)):
        with monkeypatch.context() as patch:
            fake = FakeTime(patch)
            reply(known[1], 0)
            fake.answers[known[0][1]] = 0.25
            began, asking = fake.now, holder.Asking(NONCE)
            assert asking.who_is_silent([silent[0]], 60.0, others) == {silent[0][1]}
            assert (asking.answered, asking.wrong) == (0, 0)
            assert least <= fake.now - began <= most


def test_the_silent_are_let_go_of_and_the_fresh_are_told_from_the_old(pairs):
    made_pairs = pairs(6)
    made = board.Board(1)
    made.common[board.PATIENCE] = 50
    one = holder.Holder(made.row(0), made.common, NONCE, 0)
    one.fds.extend(os.dup(fd) for (_, fd), _ in made_pairs)  # they are closed when let go of
    one._mark = 3
    for at in (0, 1, 2, 4):
        reply(made_pairs[at][1], at)
    made.row(0)[board.QUOTA] = 6
    made.common[board.FRESH], made.common[board.DROP] = 1, 1
    kept = [one.fds[at] for at in (0, 1, 2, 4)]
    one.echo()
    counted = [made.total(at) for at in (board.ASKED, board.ANSWERED, board.DROPPED, board.HELD)]
    assert counted == [3, 1, 2, 4]
    assert one.fds.tolist() == kept
    made.common[board.DROP] = 0
    one.echo()
    assert made.total(board.ASKED) == 4  # one fresh one is left
    for fd in kept:
        os.close(fd)


class FakeClient:
    def __init__(self):
        self.board = board.Board(1)

    def quotas(self, sample):
        self.sample = sample


@pytest.fixture
def commands(monkeypatch):
    made = Commands(
        Task(lambda event: None, time.monotonic), lambda event: None, lambda work, then: None
    )
    client = FakeClient()
    monkeypatch.setattr(made.task, "client", lambda op: client)
    monkeypatch.setattr(made.task, "go", lambda *order: None)
    return made, client


def test_the_patience_reaches_the_workers(commands):
    made, client = commands
    made._echo({"mode": "sample", "sample": 3, "patience_ms": 60_000})
    assert client.board.common[board.PATIENCE] == 60_000
    made._echo({"mode": "sample", "sample": 3})
    assert client.board.common[board.PATIENCE] == PATIENCE_MS


def test_what_to_ask_reaches_the_workers(commands):
    made, client = commands
    for mode, drop, fresh in (("fresh", True, 1), ("all", True, 0), ("sample", False, 0)):
        made._echo({"mode": mode, "drop": drop, "sample": 5})
        assert client.board.common[board.FRESH] == fresh
        assert client.board.common[board.DROP] == drop
    made._echo({"mode": "all"})
    assert client.board.common[board.DROP] == 0


@pytest.mark.parametrize(
    ("command", "word"),
    [({"mode": "some"}, "mode"), ({"mode": "all", "drop": 1}, "drop"), ({"mode": None}, "mode")],
)
def test_an_echo_that_makes_no_sense_is_refused(commands, command, word):
    with pytest.raises(Misuse, match=f"{word}: "):
        commands[0]._echo(command)


@pytest.mark.parametrize("patience", [0, -1, 2.5, True, "5"])
def test_a_patience_that_is_none_is_refused(commands, patience):
    with pytest.raises(Misuse, match=r"patience_ms: .* is not a whole number from 1"):
        commands[0]._echo({"mode": "all", "patience_ms": patience})


def test_workers_share_the_rate_at_which_they_close(pair):
    made, one = held(pair[0], 50)
    made.common[board.RATE], made.common[board.ACTIVE] = 90, 3
    assert one._rate() == 30.0
    made.common[board.ACTIVE] = 0
    assert one._rate() == 90.0


def test_a_sample_is_spread_evenly_over_all_that_is_held(pairs):
    made_pairs = pairs(9)
    made = board.Board(1)
    made.common[board.PATIENCE] = 50
    one = holder.Holder(made.row(0), made.common, NONCE, 0)
    one.fds.extend(fd for (_, fd), _ in made_pairs)
    made.row(0)[board.QUOTA] = 3
    for (number, _), theirs in made_pairs:
        reply(theirs, number)
    one.echo()
    asked = []
    for (number, _), theirs in made_pairs:
        theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            asked.append((number, theirs.recv(100) == wire.echo_request(NONCE, number)))
    assert asked == [(0, True), (3, True), (6, True)]
    assert (made.total(board.ASKED), made.total(board.ANSWERED)) == (3, 3)


def test_a_wrong_answer_is_counted_as_one(pair):
    made, one = held(pair[0], 500)
    pair[1].send(wire.echo_reply(NONCE, wire.echo_request(NONCE, 8)))  # another number's
    one.echo()
    counts = [made.total(at) for at in (board.ASKED, board.ANSWERED, board.WRONG)]
    assert counts == [1, 0, 1]
