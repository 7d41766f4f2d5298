"""What a client worker does with the connections that it holds: looks, asks, closes."""

from __future__ import annotations

import os
import time
from array import array
from typing import Dict, List, Tuple

from bench import wire
from bench.agent import board as cell
from bench.agent import sweep

WINDOW = 256
"""Echoes under way at a time in one worker."""


class Holder:
    """Held connections as plain descriptors; 4 bytes each."""

    def __init__(self, row: memoryview, common: memoryview, nonce: str, base: int) -> None:
        """``base``: number of the first connection within the agent's plan."""
        self._row, self._common = row, common
        self._nonce, self._base = nonce, base
        self._fds = array("i")

    def count(self) -> None:
        """Put on the board how many are held."""
        self._row[cell.HELD] = held = len(self._fds)
        self._row[cell.OPENED] = held + self._row[cell.CLOSED]

    def _closed(self, count: int) -> None:
        self._row[cell.CLOSED] += count
        self.count()

    def verify(self) -> None:
        """Look at every connection; let go of the dead ones."""
        dead = set(sweep.dead(self._fds))
        self._row[cell.ALIVE], self._row[cell.DEAD] = len(self._fds) - len(dead), len(dead)
        self._drop(dead)

    def _drop(self, dead: set[int]) -> None:
        if not dead:
            return
        sweep.reset(sorted(dead))
        self._fds = array("i", [fd for fd in self._fds if fd not in dead])
        self._closed(len(dead))

    def echo(self) -> None:
        """Ask on ``QUOTA`` connections spread evenly over this worker's."""
        quota, held = min(self._row[cell.QUOTA], len(self._fds)), len(self._fds)
        base, patience = self._base, self._common[cell.PATIENCE] / 1000
        picked = [(base + k * held // quota, self._fds[k * held // quota]) for k in range(quota)]
        for start in range(0, quota, WINDOW):
            asked, answered, wrong = ask(self._nonce, picked[start : start + WINDOW], patience)
            self._row[cell.ASKED] += asked
            self._row[cell.ANSWERED] += answered
            self._row[cell.WRONG] += wrong

    def drain(self) -> None:
        """Close all, as and at the rate that the common row says."""
        shut = sweep.close if self._common[cell.HOW] == cell.FIN else sweep.reset
        fds, self._fds = self._fds, array("i")
        done = 0
        for count in sweep.close_all(fds, shut, self._rate):
            done += count
            self._row[cell.HELD] = len(fds) - done
            self._row[cell.CLOSED] += count

    def _rate(self) -> float:
        return float(self._common[cell.RATE]) / max(1, self._common[cell.ACTIVE])

    def reset_all(self) -> None:
        """Close all with RST, as fast as it goes."""
        sweep.reset(self._fds)


def ask(nonce: str, picked: List[Tuple[int, int]], patience: float) -> Tuple[int, int, int]:
    """Send an echo on each (number, fd) and check the answers: (asked, answered, wrong).

    :param patience: seconds until an answer that has not come counts as none
    """
    waiting: Dict[int, bytes] = {}
    wrong = 0
    for number, fd in picked:
        request = wire.echo_request(nonce, number & 0xFFFFFFFF)
        reply = wire.echo_reply(nonce, request)
        try:
            os.write(fd, request)
        except OSError:
            continue
        waiting[fd] = reply or b""
    answered = 0
    ends = time.monotonic() + patience
    while waiting and time.monotonic() < ends:
        for fd, _ in sweep.ready(list(waiting), timeout_ms=200):
            expected = waiting.pop(fd)
            try:
                found = os.read(fd, wire.ECHO_BYTES)
            except OSError:
                continue
            if found == expected:
                answered += 1
            elif found:
                wrong += 1
    return len(picked), answered, wrong
