"""Churn: held connections are closed and the same four-tuples opened again, at a pace.

A connection is closed by RST, so that neither end keeps it in TIME_WAIT (RFC 9293 section 3.6.1)
and its four-tuple is free at once. The new connection takes the place of the old one in the table
of descriptors, and so its number.
"""

from __future__ import annotations

import _socket
import socket
import time
from array import array
from typing import Callable, Dict, Set

from bench.agent import board as cell
from bench.agent import sweep
from bench.agent.attempts import Attempts, FourTuple
from bench.agent.sockets import reset

BATCH = 128
"""Connections at most that are closed between two looks at what is under way. What is behind by
more, because the worker or its server stood still, is not made up for."""

NAP = 0.005
"""Seconds from one batch to the next: 200 batches a second, and a worker that mostly sleeps."""

_REUSE = socket.SOL_SOCKET, socket.SO_REUSEADDR


class Churn:
    """One order to churn, carried out by one worker on what it holds."""

    def __init__(
        self,
        fds: array[int],
        away: Dict[int, FourTuple],
        silent: Set[int],
        row: memoryview,
        common: memoryview,
        attempts: Attempts,
    ) -> None:
        """``away``: where the four-tuples of closed connections are kept, by their places;
        ``silent``: descriptors that did not answer, of which closed ones are taken out."""
        self._fds, self._away, self._silent = fds, away, silent
        self._row, self._common, self._attempts = row, common, attempts

    def run(self, place: int, timed: Callable[[int], None], publish: Callable[[], None]) -> int:
        """Churn this worker's quota, evenly over the time that the common row says.

        Ends early, with what is under way given up and counted as lost, when told to halt. What
        could not be opened again is left in ``away``.

        :param place: the first one to be closed; they are taken in turn, round and round
        :param timed: told when a connection that is complete began (perf_counter_ns)
        :param publish: called every few milliseconds
        :return: the place to go on from
        """
        quota, lasts = self._row[cell.QUOTA], self._common[cell.CHURN_MS] / 1000
        began = time.monotonic()
        done = 0  # of the quota: closed, found closed, or not made up for
        while not self._common[cell.HALT]:
            spent = time.monotonic() - began
            due = int(quota * min(1.0, spent / lasts)) - done
            late = max(0, due - BATCH)
            for _ in range(min(due - late, self._attempts.window())):
                place = self._renew(place, timed)
                done += 1
            done += late
            self._again(timed)
            self._settle(NAP, timed)
            publish()
            if spent >= lasts and done >= quota and not len(self._attempts):
                return place
        self._settle(0, timed)
        self._give_up()
        return place

    def _renew(self, place: int, timed: Callable[[int], None]) -> int:
        """Close one connection and begin to open it again; returns the next place.

        One that the server has closed stays as it is: it is lost, and to be found so.
        """
        place %= len(self._fds)
        fd = self._fds[place]
        if place in self._away or sweep.gone(fd):
            return place + 1
        held = socket.socket(fileno=fd)
        try:
            self._away[place] = held.getsockname(), held.getpeername()
        except OSError:  # closed by the server just now
            held.detach()
            return place + 1
        reset(held)
        self._silent.discard(fd)  # the kernel will give the number out again
        self._fds[place] = -1
        self._row[cell.CLOSED] += 1
        self._open(place, 0, timed)
        return place + 1

    def _open(self, place: int, tries: int, timed: Callable[[int], None]) -> None:
        began = time.perf_counter_ns()
        made = self._attempts.open(self._away[place], _REUSE, began, place, tries)
        if made is not None:
            self._complete(made, began, place, timed)

    def _again(self, timed: Callable[[int], None]) -> None:
        """Try again what is due."""
        for _, place, tries in self._attempts.due(BATCH):
            self._open(place, tries, timed)

    def _settle(self, patience: float, timed: Callable[[int], None]) -> None:
        """See what has become of what is under way."""
        for code, made, began, place, tries in self._attempts.settle(
            patience, lambda place: self._away[place][1]
        ):
            if code:
                self._attempts.failed(code, place, tries)
            else:
                self._complete(made, began, place, timed)

    def _complete(
        self, made: _socket.socket, began: int, place: int, timed: Callable[[int], None]
    ) -> None:
        self._fds[place] = made.detach()
        del self._away[place]
        timed(began)

    def _give_up(self) -> None:
        """Let go of all that is in flight."""
        self._row[cell.LOST] += len(self._attempts)
        for made, _, _, _ in self._attempts.take_all():
            made.close()
