"""A client that opens many connections at once and waits until each is served."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from typing import Any, Dict, List, Tuple

from bench.agent import control, sockets, workers
from bench.agent.stage import Misuse, Stage
from bench.agent.trials import door

MOST = 50_000
"""The most connections of a burst."""

LONGEST_MS = 30_000


class Burst:
    """Connections that are started at once."""

    def __init__(self, source: str, target: Tuple[str, int]) -> None:
        self._source, self._target = source, target
        self._epoll = select.epoll()
        self._began: Dict[int, float] = {}
        self._open: Dict[int, socket.socket] = {}
        self._waiting: Dict[int, socket.socket] = {}
        self.errors: Dict[str, int] = {}
        self.connected: List[float] = []
        """Seconds that each successful connect took."""
        self.served: List[float] = []
        """Seconds from each connect's start to the server's first byte."""

    def begin(self, count: int) -> None:
        """Start all connects without waiting for any."""
        for _ in range(count):
            made = socket.socket(control.family_of(self._source), socket.SOCK_STREAM)
            made.setblocking(False)
            sockets.choose_port_late(made)
            number = made.fileno()
            self._open[number] = made
            made.bind((self._source, 0))
            self._began[number] = time.monotonic()
            code = made.connect_ex(self._target)
            if code not in (0, errno.EINPROGRESS):
                self._failed(number, code)
                continue
            self._waiting[number] = made
            self._epoll.register(number, select.EPOLLOUT)

    def decide(self, seconds: float) -> None:
        """Wait until each connect has succeeded, failed, or taken ``seconds``."""
        while self._waiting:
            now = time.monotonic()
            oldest = next(iter(self._waiting))
            left = self._began[oldest] + seconds - now
            if left <= 0:
                self._failed(oldest, errno.ETIMEDOUT)
                continue
            self._look(left)

    def _look(self, seconds: float) -> None:
        for number, events in self._epoll.poll(seconds, 1024):
            now = time.monotonic()
            if number in self._waiting:
                code = self._waiting[number].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    self._failed(number, code)
                    continue
                del self._waiting[number]
                self.connected.append(now - self._began[number])
                self._epoll.modify(number, select.EPOLLIN)
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                self._epoll.unregister(number)
                with contextlib.suppress(OSError):
                    if self._open[number].recv(1):
                        self.served.append(now - self._began[number])

    def serve(self, seconds: float) -> None:
        """Wait until the server has greeted all connections, for at most ``seconds``."""
        ends = time.monotonic() + seconds
        while len(self.served) < len(self.connected):
            left = ends - time.monotonic()
            if left <= 0:
                return
            self._look(left)

    def _failed(self, number: int, code: int) -> None:
        name = errno.errorcode.get(code, str(code))
        self.errors[name] = self.errors.get(name, 0) + 1
        self._waiting.pop(number, None)
        self._open.pop(number).close()

    def close(self) -> None:
        """Close everything by RST."""
        for one in self._open.values():
            sockets.reset(one)
        self._open.clear()
        self._epoll.close()


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Have ``target`` prove itself, then open bursts, step by step, until the end of the input.

    A step with ``connects`` and ``timeout_ms`` opens that many connections at once. It is answered
    when each has succeeded or failed: ``connected``, ``errors`` {errno name: count} (``ETIMEDOUT``:
    it took too long), ``milliseconds`` [median, 99th percentile, most]. The connections stay open
    until the next step.

    A step with ``wait_ms`` waits for the server's bytes, closes by RST, and answers with the number
    of connections ``served`` and with ``milliseconds`` from their start.
    """
    target = door.endpoint(args["target"])
    workers.open_files("hard")
    door.proven(args, [target])
    stage.tell()
    burst = Burst(args["source"], target)
    try:
        while True:
            step = stage.step() or {}
            if "connects" in step:
                burst.close()
                burst = Burst(args["source"], target)
                burst.begin(_whole(step, "connects", MOST))
                burst.decide(_whole(step, "timeout_ms", LONGEST_MS) / 1000)
                stage.tell(
                    connected=len(burst.connected),
                    errors=burst.errors,
                    milliseconds=_spread(burst.connected),
                )
            else:
                burst.serve(_whole(step, "wait_ms", LONGEST_MS) / 1000)
                burst.close()
                stage.tell(served=len(burst.served), milliseconds=_spread(burst.served))
    finally:
        burst.close()


def _whole(step: Dict[str, Any], name: str, most: int) -> int:
    found = step.get(name)
    if not isinstance(found, int) or not 1 <= found <= most:
        raise Misuse(f"{name}: got {found!r}, expected 1 to {most}")
    return found


def _spread(seconds: List[float]) -> List[float]:
    """Return median, 99th percentile (nearest rank) and most, in milliseconds; [] for no values."""
    if not seconds:
        return []
    ranked = sorted(seconds)
    return [ranked[-(-len(ranked) * part // 100) - 1] * 1000 for part in (50, 99, 100)]
