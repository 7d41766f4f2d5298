"""Work on many held descriptors at once: look, close, reset."""

from __future__ import annotations

import _socket
import ctypes
import errno
import os
import select
import socket
import time
from typing import Callable, Iterator, List, Sequence, Tuple

from bench.agent.sockets import LINGER_RST

CHUNK = 1024
"""Descriptors per poll(2): the table of one call stays within the L2 cache."""

_setsockopt = ctypes.PyDLL(None).setsockopt
_LOOK = select.POLLIN | select.POLLRDHUP


def chunks(fds: Sequence[int], size: int = CHUNK) -> Iterator[Sequence[int]]:
    """Yield the descriptors, ``size`` at a time."""
    for start in range(0, len(fds), size):
        yield fds[start : start + size]


def ready(fds: Sequence[int], timeout_ms: int = 0) -> List[Tuple[int, int]]:
    """Return the descriptors that are readable or closed, with their events: (fd, events)."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, _LOOK)
    try:
        return poll.poll(timeout_ms)
    except OSError as error:
        # More than RLIMIT_NOFILE, which may have been lowered since they were opened (poll(2)).
        if error.errno != errno.EINVAL or len(fds) < 2:
            raise
    half, part = len(fds) // 2, timeout_ms // 2
    return ready(fds[:half], part) + ready(fds[half:], part)


def gone(fd: int) -> bool:
    """Return whether the peer has closed, without reading anything from the socket."""
    borrowed = _socket.socket(fileno=fd)
    try:
        return borrowed.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:  # ECONNRESET, ETIMEDOUT: the socket's own error
        return True
    finally:
        borrowed.detach()


def dead(fds: Sequence[int]) -> List[int]:
    """Return the descriptors whose connection is gone."""
    return [fd for chunk in chunks(fds) for fd, _ in ready(chunk) if gone(fd)]


def close(fds: Sequence[int]) -> None:
    """Close all; consecutive descriptors take one close_range(2)."""
    if fds and list(fds) == list(range(fds[0], fds[0] + len(fds))):
        os.closerange(fds[0], fds[0] + len(fds))
        return
    for fd in fds:
        os.close(fd)


def reset(fds: Sequence[int]) -> None:
    """Close all by RST: SO_LINGER on with time 0 (socket(7)), so that no TIME_WAIT is left.

    This calls the C library: creating a socket object costs two more system calls.
    """
    for fd in fds:
        _setsockopt(fd, socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RST, len(LINGER_RST))
    close(fds)


class Pace:
    """A token bucket: at most ``rate`` a second, at most ``burst`` at once; rate 0 is no limit."""

    def __init__(self, burst: int) -> None:
        self._burst = burst
        self._tokens = 0.0
        self._last = time.monotonic()

    def take(self, wanted: int, rate: float) -> int:
        """Take up to ``wanted`` tokens; return how many were granted."""
        if not rate:
            return wanted
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._last) * rate)
        self._last = now
        granted = min(wanted, int(self._tokens))
        self._tokens -= granted
        return granted

    def give_back(self, unspent: int) -> None:
        """Return tokens that were granted and not spent."""
        self._tokens += unspent


def close_all(
    fds: Sequence[int], shut: Callable[[Sequence[int]], None], rate: Callable[[], float]
) -> Iterator[int]:
    """Close in paced windows; yield how many were closed in each."""
    pace = Pace(CHUNK)
    at = 0
    while at < len(fds):
        count = pace.take(min(256, len(fds) - at), rate())
        shut(fds[at : at + count])
        at += count
        yield count
        if not count:
            time.sleep(0.002)
