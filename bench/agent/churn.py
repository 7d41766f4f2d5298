"""Churn: close held connections and open the same four-tuples again, at a steady pace.

A connection is closed by RST, so that neither end keeps it in TIME_WAIT (RFC 9293 section 3.6.1)
and its four-tuple is free at once. The new connection takes the old one's place in the table of
descriptors, and with it its number.
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
"""The most connections that are closed before the connects under way are looked at again. If the
worker or its server stood still and more are due, the excess is skipped."""

NAP = 0.005
"""Seconds from one batch to the next: 200 batches a second, so the worker mostly sleeps."""

_REUSE = socket.SOL_SOCKET, socket.SO_REUSEADDR


class Churn:
    """One order to churn, carried out by one worker on its own connections."""

    def __init__(
        self,
        fds: array[int],
        away: Dict[int, FourTuple],
        silent: Set[int],
        row: memoryview,
        common: memoryview,
        attempts: Attempts,
    ) -> None:
        """Prepare to churn.

        :param away: keeps the four-tuples of closed connections, by place
        :param silent: descriptors that did not answer; closed ones are removed
        """
        self._fds, self._away, self._silent = fds, away, silent
        self._row, self._common, self._attempts = row, common, attempts

    def run(self, place: int, timed: Callable[[int], None], publish: Callable[[], None]) -> int:
        """Churn this worker's quota, evenly over the time given in the common row.

        On HALT it ends early, gives up the connects under way and counts them as lost. ``away``
        keeps the connections that could not be opened again.

        :param place: the first connection to close; connections are taken in turn, round and round
        :param timed: called for each connection that is complete, with its start (perf_counter_ns)
        :param publish: called every few milliseconds
        :return: the place to continue from
        """
        quota, lasts = self._row[cell.QUOTA], self._common[cell.CHURN_MS] / 1000
        began = time.monotonic()
        done = 0  # of the quota: closed, seen to be closed, or skipped
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
        """Close one connection and begin to open it again; return the next place.

        A connection that the server has closed is left alone: it is lost, and has to be counted as
        lost.
        """
        place %= len(self._fds)
        fd = self._fds[place]
        if place in self._away or sweep.gone(fd):
            return place + 1
        held = socket.socket(fileno=fd)
        try:
            self._away[place] = held.getsockname(), held.getpeername()
        except OSError:  # the server has just closed it
            held.detach()
            return place + 1
        reset(held)
        self._silent.discard(fd)  # the kernel will reuse the number
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
        """Start the retries that are due."""
        for _, place, tries in self._attempts.due(BATCH):
            self._open(place, tries, timed)

    def _settle(self, patience: float, timed: Callable[[int], None]) -> None:
        """Complete or retry the connects that have ended."""
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
        """Close everything in flight and count it as lost."""
        self._row[cell.LOST] += len(self._attempts)
        for made, _, _, _ in self._attempts.take_all():
            made.close()
