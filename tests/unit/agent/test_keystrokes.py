"""Echo rounds of a client worker: what is asked, what counts as an answer, how long it may take."""

import contextlib
import os
import socket
import threading
import time
from array import array

import pytest

from bench import wire
from bench.agent import board, echoround, holder, keystrokes
from bench.agent.client import Client
from bench.agent.commands import Commands
from bench.agent.task import Misuse, Task

NONCE = "00" * 16
ANSWERS = wire.round_answers(NONCE)


def test_no_byte_is_its_own_answer_and_all_differ():
    for nonce in (NONCE, "ab" * 16):
        table = wire.round_answers(nonce)
        assert sorted(table) == list(range(256))
        at, steps = table[0], 1
        while at:  # Sattolo's permutations are one cycle
            at, steps = table[at], steps + 1
        assert steps == 256
    assert wire.round_answers("ab" * 16) != ANSWERS


def test_neighbours_and_rounds_differ():
    assert len({wire.round_byte(number, 1) for number in range(256)}) == 256
    assert len({wire.round_byte(5, number) for number in range(1, 257)}) == 256


@pytest.fixture
def pairs():
    """So many connections: descriptors of ours, sockets of theirs."""
    with contextlib.ExitStack() as stack:

        def make(count):
            ours, theirs = array("i"), []
            for _ in range(count):
                mine, other = map(stack.enter_context, socket.socketpair())
                mine.setblocking(False)
                other.setblocking(False)
                ours.append(mine.fileno())
                theirs.append(other)
            return ours, theirs

        yield make


def made(ours, first=7):
    common = board.Board(1).common
    return common, keystrokes.Keystrokes(NONCE, common, ours, first)


class FakeServer:
    """Answers what has come whenever the client would wait: nothing depends on time."""

    def __init__(self, monkeypatch, theirs, answer=lambda at, data: data.translate(ANSWERS)):
        self.theirs, self.answer, self.heard = theirs, answer, [b""] * len(theirs)
        self.under_way, self.waits = [], []
        self.real = keystrokes.sweep.ready
        monkeypatch.setattr(keystrokes.sweep, "ready", self.ready)

    def ready(self, fds, timeout_ms=0):
        if timeout_ms:
            self.waits.append(len(fds))
            self.under_way.append(self.serve())
        return self.real(fds, min(timeout_ms, 1))

    def serve(self):
        count = 0
        for at, peer in enumerate(self.theirs):
            try:
                data = peer.recv(16)
            except OSError:  # nothing there, or closed
                continue
            count += 1
            self.heard[at] += data
            reply = self.answer(at, data)
            if reply is None:
                peer.close()
            else:
                peer.sendall(reply)
        return count


def never():
    raise AssertionError("there is nothing to pass on")


@pytest.mark.parametrize("window", [1, 2, 3, 8, 100])
def test_every_connection_is_asked_once_and_no_more_than_the_window_at_a_time(
    monkeypatch, pairs, window
):
    ours, theirs = pairs(20)
    server = FakeServer(monkeypatch, theirs)
    _, one = made(ours)
    one.pipelined(range(20), window, 5.0, never)
    assert (one.asked, one.answered, one.wrong, one.silent) == (20, 20, 0, set())
    assert server.heard == [bytes([7 + at]) for at in range(20)]
    assert max(server.under_way) <= window
    assert set(server.waits) == {1}  # for the last of some, not for each
    assert sum(one.latency) == 20


def test_the_sample_alone_is_asked(monkeypatch, pairs):
    ours, theirs = pairs(6)
    server = FakeServer(monkeypatch, theirs)
    _, one = made(ours, first=254)
    one.pipelined([0, 3, 5], 4, 5.0, never)
    assert (one.asked, one.answered) == (3, 3)
    assert server.heard == [b"\xfe", b"", b"", b"\x01", b"", b"\x03"]


def test_what_only_comes_back_is_wrong_and_so_is_too_much(monkeypatch, pairs):
    ours, theirs = pairs(5)

    def answer(at, data):
        right = data.translate(ANSWERS)
        return (right, data, right + right, None, right)[at]

    FakeServer(monkeypatch, theirs, answer)
    _, one = made(ours)
    one.pipelined(range(5), 2, 5.0, never)
    assert (one.asked, one.answered, one.wrong) == (5, 2, 2)
    assert one.silent == {ours[3]}  # closed


def test_a_closed_connection_is_silent_at_once(pairs):
    ours, theirs = pairs(2)
    for peer in theirs:
        peer.close()
    _, one = made(ours)
    began = time.monotonic()
    one.pipelined([0], 4, 600.0, never)
    one.one_by_one([1], 600.0)
    assert time.monotonic() - began < 60
    assert (one.asked, one.answered, one.silent) == (2, 0, set(ours))


def test_windows_grow_as_long_as_nobody_answers_and_stragglers_are_passed_on(monkeypatch, pairs):
    ours, theirs = pairs(40)
    server = FakeServer(monkeypatch, theirs, lambda at, data: b"")
    passed = []
    _, one = made(ours)
    one.pipelined(range(40), 2, 0.01, lambda: passed.append(server.under_way[:]))
    # All that is under way is left aside, and twice as much tried.
    assert passed == [[2, 4, 8, 16, 10]]
    assert (one.asked, one.answered, one.silent) == (40, 0, set(ours))


def test_a_silent_connection_holds_up_nobody(monkeypatch, pairs):
    ours, theirs = pairs(30)
    monkeypatch.setattr(keystrokes, "LULL_MS", 20)
    FakeServer(monkeypatch, theirs, lambda at, data: b"" if at == 3 else data.translate(ANSWERS))
    passed = []
    _, one = made(ours)
    one.pipelined(range(30), 4, 0.3, lambda: passed.append(one.answered))
    assert passed == [29]
    assert (one.asked, one.answered, one.silent) == (30, 29, {ours[3]})


def answer_after(theirs, seconds):
    def body():
        time.sleep(seconds)
        theirs.sendall(theirs.recv(16).translate(ANSWERS))

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def test_an_answer_after_a_lull_is_still_one(pairs):
    ours, (theirs,) = pairs(1)
    thread = answer_after(theirs, 2 * keystrokes.LULL_MS / 1000)
    _, one = made(ours)
    one.pipelined([0], 4, 60.0, lambda: None)
    thread.join()
    assert (one.answered, one.silent) == (1, set())
    assert wire.percentile(dict(enumerate(one.latency)), 1.0) >= keystrokes.LULL_MS * 1000


def test_lulls_are_long_where_answers_are_slow(monkeypatch, pairs):
    ours, theirs = pairs(4)
    monkeypatch.setattr(keystrokes, "LULL_MS", 1)
    waited = []
    server = FakeServer(monkeypatch, theirs)

    def slow(fds, timeout_ms=0):
        waited.append(timeout_ms)
        time.sleep(0.05 if len(waited) == 1 else 0)
        return server.ready(fds, timeout_ms)

    monkeypatch.setattr(keystrokes.sweep, "ready", slow)
    _, one = made(ours)
    one.pipelined(range(4), 2, 60.0, never)
    assert one.answered == 4
    assert waited[0] == 1
    assert all(wait >= 50 * keystrokes.SLOWER for wait in waited[1:])


@pytest.mark.parametrize("mode", ["pipelined", "sequential"])
def test_a_round_that_is_over_ends_as_it_is(pairs, mode):
    ours, _ = pairs(2)
    common, one = made(ours)
    common[board.OVER] = 1
    if mode == "pipelined":
        one.pipelined(range(2), 4, 600.0, never)
    else:
        one.one_by_one(range(2), 600.0)
    assert (one.asked, one.answered) == (0, 0)


def echo_server(theirs, most):
    """Answers one byte after the other, and tells in which order they came, how many at a time."""
    order, together = [], []

    def body():
        poll = keystrokes.select.poll()
        at = {}
        for number, peer in enumerate(theirs):
            poll.register(peer, keystrokes.select.POLLIN)
            at[peer.fileno()] = number
        while len(order) < most:
            moved = poll.poll(20_000)
            together.append(len(moved))
            for fd, _ in moved:
                order.append(at[fd])
                os.write(fd, os.read(fd, 16).translate(ANSWERS))

    thread = threading.Thread(target=body)
    thread.start()
    return thread, order, together


def test_one_after_the_other(pairs):
    ours, theirs = pairs(10)
    thread, order, together = echo_server(theirs, 5)
    _, one = made(ours)
    one.one_by_one([1, 0, 9, 4, 5], 20.0)
    thread.join()
    assert (one.asked, one.answered, one.wrong, one.silent) == (5, 5, 0, set())
    assert (order, together) == ([1, 0, 9, 4, 5], [1] * 5)
    assert sum(one.latency) == 5


def test_one_after_the_other_ends_where_nobody_answers(pairs):
    ours, _ = pairs(20)
    _, one = made(ours)
    one.one_by_one(range(20), 0.001)
    assert one.asked == len(one.silent) == keystrokes.MOST_SILENCES


def test_a_wrong_answer_is_found_one_after_the_other(pairs):
    ours, (theirs,) = pairs(1)
    theirs.sendall(b"x")
    _, one = made(ours)
    one.one_by_one([0], 5.0)
    assert (one.asked, one.answered, one.wrong, one.silent) == (1, 0, 1, set())


def test_who_was_silent_is_left_out_of_later_rounds(monkeypatch, pairs):
    ours, theirs = pairs(6)
    counts = board.Board(1)
    common, row = counts.common, counts.row(0)
    one = holder.Holder(row, common, NONCE, 100)
    one.fds.extend(ours)
    silent = {2}
    server = FakeServer(
        monkeypatch, theirs, lambda at, data: b"" if at in silent else data.translate(ANSWERS)
    )
    common[board.WINDOW], common[board.PATIENCE], row[board.QUOTA] = 4, 10, 6
    told = []
    for number in (1, 2):
        common[board.NUMBER] = number
        counts.begin_round()
        one.round(lambda: None)
        cells = (board.ASKED, board.ANSWERED, board.WRONG, board.SILENT)
        told.append([counts.total(at) for at in cells])
        assert sum(counts.round_latency().values()) == 5  # of this round alone
        silent.clear()
    assert told == [[6, 5, 0, 1], [11, 10, 0, 1]]
    for at, heard in enumerate(server.heard):
        sent = bytes(wire.round_byte(100 + at, number) for number in (1, 2))
        assert heard == (sent[:1] if at == 2 else sent)


class FakeClient:
    def __init__(self):
        self.board = board.Board(2)
        self.crew = self
        for worker in range(2):
            self.board.row(worker)[board.HELD] = 50

    quotas = Client.quotas

    def cpu_seconds(self):
        return 1.5


def test_what_to_do_reaches_the_workers():
    client = FakeClient()
    common = client.board.common
    made_round = echoround.EchoRound(client, {"mode": "pipelined"})
    assert not made_round.sequential
    cells = (board.NUMBER, board.WINDOW, board.PATIENCE, board.SEQUENTIAL)
    assert [common[at] for at in cells] == [1, echoround.WINDOW, 5_000, 0]
    assert client.board.column(board.QUOTA).tolist() == [50, 50]
    told = {"mode": "sequential", "number": 3, "sample": 5, "window": 9, "patience_ms": 7}
    assert echoround.EchoRound(client, told).sequential
    assert [common[at] for at in cells] == [3, 9, 7, 1]
    assert client.board.total(board.QUOTA) == 5


def test_what_came_of_it_is_of_this_round():
    client = FakeClient()
    rows = [client.board.row(worker) for worker in range(2)]
    rows[0][board.ASKED] = rows[0][board.ROUND_LATENCY + 3] = 100
    one = echoround.EchoRound(client, {"mode": "pipelined"})
    for row, asked in zip(rows, (150, 50), strict=True):
        row[board.ASKED] = asked
        row[board.ROUND_LATENCY + 9] = 2
    rows[1][board.WRONG], rows[1][board.SILENT] = 1, 2
    found = one.answer()
    assert (found["asked"], found["wrong"], found["silent"]) == (100, 1, 2)
    assert (found["latency"], found["cpu_seconds"]) == ({"9": 4}, 0.0)


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ({}, "mode"),
        ({"mode": "all"}, "mode"),
        ({"mode": "pipelined", "window": 0}, "window"),
        ({"mode": "pipelined", "number": 0}, "number"),
        ({"mode": "sequential", "sample": -1}, "sample"),
        ({"mode": "sequential", "patience_ms": True}, "patience_ms"),
    ],
)
def test_a_round_that_makes_no_sense_is_refused(command, word):
    with pytest.raises(Misuse, match=f"{word}: "):
        echoround.EchoRound(FakeClient(), command)


class FakeServing:
    count = 1

    def __init__(self, watch):
        self.board, self.spec = board.Board(1), {"watch": watch}


@pytest.mark.parametrize(
    ("watch", "how", "word"),
    [("epoll", "loud", "how: 'loud'"), ("none", "byte", "how: byte needs a server that watches")],
)
def test_an_answer_that_makes_no_sense_is_refused(monkeypatch, watch, how, word):
    commands = Commands(
        Task(lambda event: None, time.monotonic), lambda event: None, lambda work, then: None
    )
    monkeypatch.setattr(commands.task, "server", lambda op: FakeServing(watch))
    with pytest.raises(Misuse, match=word):
        commands._answer({"on": True, "how": how})


@pytest.mark.parametrize(
    ("command", "value"),
    [
        ({"on": True}, board.TAGGED),
        ({"on": True, "how": "byte"}, board.BYTE),
        ({"on": False, "how": "byte"}, 0),
    ],
)
def test_how_to_answer_reaches_the_workers(monkeypatch, command, value):
    commands = Commands(
        Task(lambda event: None, time.monotonic), lambda event: None, lambda work, then: None
    )
    server = FakeServing("epoll")
    monkeypatch.setattr(commands.task, "server", lambda op: server)
    monkeypatch.setattr(commands.task, "go", lambda *order: None)
    commands._answer(command)
    assert server.board.common[board.ANSWER] == value
