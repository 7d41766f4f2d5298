"""A sender sends no more than it may, and no end of a connection stays."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

import pytest

from bench.agent.stage import Misuse
from bench.agent.trials import unread


@pytest.mark.parametrize("most", [1, 1000, (1 << 18) + 7])
def test_a_flood_ends_with_the_last_byte_that_may_be_sent(most: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for one in (ours, theirs):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        ours.setblocking(False)
        assert unread._flood(ours, most, time.monotonic() + 10) == most
        theirs.setblocking(False)
        came = 0
        while came < most:
            came += len(theirs.recv(1 << 20))
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


def test_a_server_resets_what_it_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """By FIN, the end that is closed first would wait for the other's."""
    steps = [{"accept": 1}]

    class Ended(Exception):
        pass

    class FakeStage:
        def tell(self, **figures: Any) -> None:
            pass

        def step(self) -> dict[str, int]:
            if not steps:
                raise Ended
            return steps.pop()

    ear = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(unread, "listener", lambda *_, **__: ear)
    monkeypatch.setattr(unread.door, "kept", lambda *_: contextlib.nullcontext())
    stage: Any = FakeStage()
    with socket.create_connection(ear.getsockname(), timeout=10) as peer:
        with pytest.raises(Ended):
            unread._serve(stage, {}, ear.getsockname())
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


def test_what_a_step_may_send_has_a_bound() -> None:
    assert unread._bounded(unread.MOST_BYTES) == unread.MOST_BYTES
    for count in (0, -1, unread.MOST_BYTES + 1):
        with pytest.raises(Misuse, match=f"got {count}, expected"):
            unread._bounded(count)
