"""Connects under way in one client worker, and those that wait to be tried again."""

from __future__ import annotations

import _socket
import errno
import heapq
import socket
import time
from typing import Any, Callable, Iterator, List, Optional, Tuple

from bench import wire
from bench.agent import board as cell
from bench.agent.control import family_of
from bench.agent.pending import Entry, Pending

KIND = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
UNDER_WAY = (errno.EALREADY, errno.EINPROGRESS)
COMPLETE = (0, errno.EISCONN)

Name = Tuple[Any, ...]
"""A socket address as the socket module represents it: (address, port), and two more fields for
IPv6."""

FourTuple = Tuple[Name, Name]
"""Source and target of a connection."""

Retry = Tuple[float, int, int]
"""(when it is due, monotonic seconds; number of the connection; tries before this one)."""

Settled = Tuple[int, _socket.socket, int, int, int]
"""(errno, or 0 if the connection is complete; the rest as in :data:`Entry`)."""


class Attempts:
    """The connections that one worker has in flight.

    Their number is bounded, their errors are counted by errno, and each is given up after its last
    retry.
    """

    def __init__(self, board: cell.Board, row: memoryview, spec: wire.ClientSpec) -> None:
        self._board, self._row, self._spec = board, row, spec
        self._pending = Pending(spec["connect_timeout_ms"] / 1000)
        self._retries: List[Retry] = []

    def __len__(self) -> int:
        return len(self._pending) + len(self._retries)

    @property
    def under_way(self) -> int:
        """Connects that wait for an answer."""
        return len(self._pending)

    @property
    def next_retry(self) -> float:
        """When the next retry is due, monotonic seconds; 0 if there is none."""
        return self._retries[0][0] if self._retries else 0.0

    def window(self) -> int:
        """Return how many more connects this worker may start now.

        The workers whose turn it is share the agent's window. What earlier workers still have under
        way is subtracted first.
        """
        mine = len(self)
        others = self._board.total(cell.IN_FLIGHT) - self._row[cell.IN_FLIGHT]
        most = self._spec["max_in_flight"]
        share = -(-most // max(1, self._board.common[cell.ACTIVE]))
        return max(0, min(most - others - mine, share - mine))

    def due(self, most: int) -> List[Retry]:
        """Remove and return the retries that are due, at most ``most`` of them."""
        now = time.monotonic()
        due: List[Retry] = []
        while self._retries and self._retries[0][0] <= now and len(due) < most:
            due.append(heapq.heappop(self._retries))
        return due

    def put_back(self, retries: List[Retry]) -> None:
        """Put back retries that :meth:`due` returned and that were not tried."""
        for retry in retries:
            heapq.heappush(self._retries, retry)

    def add(self, made: _socket.socket, began: int, number: int, tries: int) -> None:
        """Watch a connect that is under way since ``began`` (perf_counter_ns)."""
        self._pending.add(made, began, number, tries)

    def open(
        self, ends: FourTuple, option: Tuple[int, int], began: int, number: int, tries: int
    ) -> Optional[_socket.socket]:
        """Start one connect; return the socket if it is complete at once.

        Otherwise return None: the connect is under way, or it has failed and is counted.

        :param option: level and option of socket(7) or ip(7), set to 1 before bind(2)
        """
        source, target = ends
        made = None
        try:
            made = _socket.socket(family_of(target[0]), KIND, 0)
            made.setsockopt(*option, 1)
            made.bind(source)
            code = made.connect_ex(target)
            if code in UNDER_WAY:  # on a local network it is often complete by now
                code = made.connect_ex(target)
        except OSError as error:
            code = error.errno or 0
        if made is not None:
            if code in COMPLETE:
                return made
            if code in UNDER_WAY:
                self._pending.add(made, began, number, tries)
                return None
            made.close()
        self.failed(code, number, tries)
        return None

    def settle(self, patience: float, target: Callable[[int], Name]) -> Iterator[Settled]:
        """Yield the connects that have ended, after at most ``patience`` seconds of waiting.

        They are no longer under way. The socket of a failed connect is closed.

        :param target: returns the target of a connection, given its number
        """
        for made, began, number, tries in self._pending.moved(patience):
            code = made.connect_ex(target(number))
            if code in UNDER_WAY:
                self._pending.add(made, began, number, tries)
                continue
            if code in COMPLETE:
                code = 0
            else:
                made.close()
            yield code, made, began, number, tries
        for made, began, number, tries in self._pending.overdue():
            made.close()
            yield errno.ETIMEDOUT, made, began, number, tries

    def failed(self, code: int, number: int, tries: int) -> bool:
        """Count an error by its errno; return whether the connection will be tried again."""
        row, common = self._row, self._board.common
        row[cell.ERRORS + code] += 1
        if tries >= self._spec["retries"]:
            row[cell.LOST] += 1
            most = common[cell.MOST_LOST]
            if most and self._board.total(cell.LOST) >= most:
                common[cell.HALT] = 1
            return False
        row[cell.RETRIED] += 1
        due = time.monotonic() + self._spec["backoff_ms"] / 1000 * (1 << min(tries, 16))
        heapq.heappush(self._retries, (due, number, tries + 1))
        return True

    def take_all(self) -> List[Entry]:
        """Forget everything in flight; return the connects that were under way."""
        self._retries.clear()
        return self._pending.take_all()

    def publish(self) -> None:
        """Write the number of connections in flight to the board."""
        self._row[cell.IN_FLIGHT] = len(self)
