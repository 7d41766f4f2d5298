"""Segments that there is no room for."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from bench.agent.trials import rawsockets
from bench.agent.trials.rawsockets import Wire
from bench.agent.trials.segments import RST


class Raw:
    """A datagram socket whose other end is read only when a segment has been refused."""

    def __init__(self, refusals: list[int], drained: bool) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.near.setblocking(False)
        self.far.setblocking(False)
        self.refusals, self.drained = refusals, drained
        self.seen: list[bytes] = []
        self.refused = 0

    def send(self, data: bytes) -> int:
        if self.refusals:
            code = self.refusals.pop()
            self.refused += 1
            raise OSError(code, os.strerror(code))
        try:
            return self.near.send(data)
        except BlockingIOError:
            self.refused += 1
            if self.drained:
                self.drain()
            raise

    def drain(self) -> None:
        while True:
            try:
                self.seen.append(self.far.recv(2_048))
            except BlockingIOError:
                return

    def fileno(self) -> int:
        return self.near.fileno()

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def wire():
    made = Wire.__new__(Wire)  # without its raw socket, which is for root alone
    made._source, made._target = "198.18.1.1", ("198.18.0.1", 5_000)

    def over(refusals: tuple[int, ...] = (), drained: bool = True) -> Wire:
        made._raw = Raw(list(refusals), drained)
        return made

    yield over
    made.close()


def test_a_segment_waits_for_room(wire) -> None:
    out = wire()
    for port in range(20_000, 22_000):
        out.send(port, 1, 0, RST)
    out._raw.drain()
    assert out._raw.refused > 0
    assert len(out._raw.seen) == 2_000


def test_a_segment_waits_for_memory(wire) -> None:
    out = wire(refusals=(errno.ENOBUFS, errno.ENOBUFS))
    out.send(20_000, 1, 0, RST)
    out._raw.drain()
    assert (out._raw.refused, len(out._raw.seen)) == (2, 1)


def test_waiting_for_room_ends(wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rawsockets, "ROOM", 0.05)
    out = wire(drained=False)
    with pytest.raises(BlockingIOError, match="temporarily unavailable"):
        for _ in range(100_000):
            out.send(20_000, 1, 0, RST)


def test_another_error_is_told_at_once(wire) -> None:
    out = wire(refusals=(errno.ENETUNREACH, errno.EAGAIN))
    with pytest.raises(OSError, match=os.strerror(errno.ENETUNREACH)):
        out.send(20_000, 1, 0, RST)
