"""Echoes of a client worker: who answers in time, and how long it waits for who does not."""

import socket
import threading
import time

import pytest

from bench import wire
from bench.agent import board, holder
from bench.agent.commands import PATIENCE_MS, Commands
from bench.agent.duty import Misuse

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
    one._fds.append(ours.fileno())
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


class FakeClient:
    def __init__(self):
        self.board = board.Board(1)

    def quotas(self, sample):
        self.sample = sample


@pytest.fixture
def commands(monkeypatch):
    made = Commands(lambda event: None, lambda work, then: None, time.monotonic)
    client = FakeClient()
    monkeypatch.setattr(made, "_client", lambda op: client)
    monkeypatch.setattr(made, "_go", lambda *order: None)
    return made, client


def test_the_patience_reaches_the_workers(commands):
    made, client = commands
    made._echo({"mode": "sample", "sample": 3, "patience_ms": 60_000})
    assert client.board.common[board.PATIENCE] == 60_000
    made._echo({"mode": "sample", "sample": 3})
    assert client.board.common[board.PATIENCE] == PATIENCE_MS


@pytest.mark.parametrize("patience", [0, -1, 2.5, True, "5"])
def test_a_patience_that_is_none_is_refused(commands, patience):
    with pytest.raises(Misuse, match=r"patience_ms: .* is not a whole number from 1"):
        commands[0]._echo({"mode": "all", "patience_ms": patience})
