"""Connects under way in one client worker, the oldest first."""

from __future__ import annotations

import _socket
import select
import time
from typing import Dict, List, Tuple

Entry = Tuple[_socket.socket, int, int, int]
"""(socket, perf_counter_ns at its start, number of the connection, tries before this one)."""


class Pending:
    """Sockets in SYN_SENT with a common time limit in seconds.

    Only here does a connection have a socket object. It lasts as long as the handshake.
    """

    def __init__(self, limit: float) -> None:
        self._limit_ns = int(limit * 1e9)
        self._entries: Dict[int, Entry] = {}
        self._poll = select.poll()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, made: _socket.socket, began: int, number: int, tries: int) -> None:
        """Watch a socket until it is connected, fails, or runs out of time."""
        fd = made.fileno()
        self._entries[fd] = (made, began, number, tries)
        self._poll.register(fd, select.POLLOUT)

    def moved(self, patience: float) -> List[Entry]:
        """Remove and return the sockets that are connected or failed.

        :param patience: seconds to wait at most
        """
        return [self._remove(fd) for fd, _ in self._poll.poll(patience * 1000)]

    def overdue(self) -> List[Entry]:
        """Remove and return the sockets that have run out of time."""
        before = time.perf_counter_ns() - self._limit_ns
        late = []
        for fd, entry in self._entries.items():  # in the order of their start
            if entry[1] > before:
                break
            late.append(fd)
        return [self._remove(fd) for fd in late]

    def take_all(self) -> List[Entry]:
        """Remove and return all that are left."""
        return [self._remove(fd) for fd in list(self._entries)]

    def _remove(self, fd: int) -> Entry:
        self._poll.unregister(fd)
        return self._entries.pop(fd)
