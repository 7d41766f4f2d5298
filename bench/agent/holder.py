"""The held connections of a client worker, and its work on them: verify, ask, close."""

from __future__ import annotations

import os
import time
from array import array
from typing import Callable, Dict, Iterable, List, Sequence, Set, Tuple

from bench import wire
from bench.agent import board as cell
from bench.agent import sweep
from bench.agent.attempts import FourTuple
from bench.agent.keystrokes import Keystrokes

WINDOW = 256
"""Echoes under way at a time in one worker."""

LARGEST_WINDOW = 1 << 13
"""The largest window, used when no connection answers."""

LULL_MS = 200
"""How long to wait for answers if none arrives, ms."""

SLOWER, LEAST_PATIENCE, YARDSTICKS = 5, 1.0, 8
"""Limits to the wait for connections that may be silent. ``SLOWER``: how many times the slowest
answer's time is waited; ``LEAST_PATIENCE``: the seconds that are waited in any case;
``YARDSTICKS``: how many older connections are asked first."""


Numbered = Tuple[int, int]
"""A held connection: (its number, its descriptor)."""


class Holder:
    """Held connections as plain descriptors; 4 bytes each."""

    def __init__(self, row: memoryview, common: memoryview, nonce: str, base: int) -> None:
        """Start without connections.

        :param base: number of the first connection within the agent's plan
        """
        self._row, self._common = row, common
        self._nonce, self._base = nonce, base
        self.fds = array("i")
        """Descriptors, in the order of the plan: 4 bytes each."""
        self.silent: Set[int] = set()
        """Descriptors that did not answer in a round."""
        self.away: Dict[int, FourTuple] = {}
        """Connections that are being opened again, by their place in ``fds``."""
        self._mark = 0  # how many of them are older than the last ramp

    def count(self) -> None:
        """Write the number of held connections to the board."""
        self._row[cell.HELD] = held = len(self.fds) - len(self.away)
        self._row[cell.OPENED] = held + self._row[cell.CLOSED]

    def _closed(self, count: int) -> None:
        self._row[cell.CLOSED] += count
        self.count()

    def ramp_begins(self) -> None:
        """Count the connections that are held now as older than the ramp."""
        self._mark = len(self.fds)

    def verify(self) -> None:
        """Look at every connection; close the dead ones."""
        dead = set(sweep.dead(self.fds))
        self._row[cell.ALIVE], self._row[cell.DEAD] = len(self.fds) - len(dead), len(dead)
        self._drop(dead)

    def _drop(self, dead: Set[int]) -> None:
        if not dead:
            return
        sweep.reset(sorted(dead))
        self.silent -= dead
        self._mark -= sum(fd in dead for fd in self.fds[: self._mark])
        self.fds = array("i", [fd for fd in self.fds if fd not in dead])
        self._closed(len(dead))

    def drop_lost(self) -> None:
        """Remove the places whose connection could not be opened again."""
        if not self.away:
            return
        self._mark -= sum(place < self._mark for place in self.away)
        self.fds = array("i", [fd for at, fd in enumerate(self.fds) if at not in self.away])
        self.away.clear()

    def echo(self) -> None:
        """Send echoes on ``QUOTA`` connections, spread evenly over all or over the fresh ones."""
        first = self._mark if self._common[cell.FRESH] else 0
        held = len(self.fds) - first
        quota, patience = min(self._row[cell.QUOTA], held), self._common[cell.PATIENCE] / 1000
        picked = self._numbered([first + k * held // quota for k in range(quota)])
        asking = Asking(self._nonce)
        if self._common[cell.DROP]:
            older = self._numbered(range(max(0, first - YARDSTICKS), first))
            silent = asking.who_is_silent(picked, patience, older)
            self._row[cell.DROPPED] += len(silent)
            self._drop(silent)
        else:
            for start in range(0, quota, WINDOW):
                asking.ask(picked[start : start + WINDOW], patience)
        self._row[cell.ASKED] += quota
        self._row[cell.ANSWERED] += asking.answered
        self._row[cell.WRONG] += asking.wrong

    def round(self, pass_on: Callable[[], None]) -> None:
        """Send one byte on ``QUOTA`` connections and expect one byte back.

        Connections that were silent before are left out: their late answer would count as a wrong
        answer of the next round.

        :param pass_on: called once when only stragglers are left to wait for
        """
        common, row, held = self._common, self._row, len(self.fds)
        quota, patience = min(row[cell.QUOTA], held), common[cell.PATIENCE] / 1000
        places: Sequence[int] = range(held)
        if quota < held:
            places = [k * held // quota for k in range(quota)]
        if self.silent:
            places = [place for place in places if self.fds[place] not in self.silent]
        first = wire.round_byte(self._base, common[cell.NUMBER])
        keystrokes = Keystrokes(self._nonce, common, self.fds, first)
        if common[cell.SEQUENTIAL]:
            keystrokes.one_by_one(places, patience)
        else:
            keystrokes.pipelined(places, common[cell.WINDOW], patience, pass_on)
        self.silent |= keystrokes.silent
        row[cell.ASKED] += keystrokes.asked
        row[cell.ANSWERED] += keystrokes.answered
        row[cell.WRONG] += keystrokes.wrong
        row[cell.SILENT] += len(keystrokes.silent)
        row[cell.ROUND_LATENCY :] = memoryview(array("q", keystrokes.latency))

    def _numbered(self, places: Iterable[int]) -> List[Numbered]:
        return [(self._base + place, self.fds[place]) for place in places]

    def drain(self) -> None:
        """Close all connections in the way and at the rate that the common row gives."""
        shut = sweep.close if self._common[cell.HOW] == cell.FIN else sweep.reset
        fds, self.fds, self._mark = self.fds, array("i"), 0
        self.silent.clear()
        done = 0
        for count in sweep.close_all(fds, shut, self._rate):
            done += count
            self._row[cell.HELD] = len(fds) - done
            self._row[cell.CLOSED] += count

    def _rate(self) -> float:
        if self._common[cell.OVER]:  # the agent is ending, and does not wait for long
            return 0.0
        return float(self._common[cell.RATE]) / max(1, self._common[cell.ACTIVE])

    def reset_all(self) -> None:
        """Close all connections by RST, without a pace."""
        sweep.reset(self.fds)


class Asking:
    """Echoes on held connections, and their outcome."""

    def __init__(self, nonce: str) -> None:
        self.answered = self.wrong = 0
        self._nonce = nonce
        self._waiting: Dict[int, bytes] = {}
        self._failed: Set[int] = set()
        self._sent = self._slowest = 0.0

    def ask(self, picked: Sequence[Numbered], patience: float) -> None:
        """Send an echo on each connection and check the answers.

        :param patience: seconds after which a missing answer counts as none
        """
        self._send(picked)
        ends = time.monotonic() + patience
        while self._waiting and time.monotonic() < ends:
            self._hear()
        self._waiting.clear()

    def who_is_silent(
        self, picked: Sequence[Numbered], patience: float, known: Sequence[Numbered] = ()
    ) -> Set[int]:
        """Send an echo on each connection; return the descriptors that did not answer.

        Silent connections are often many and next to each other, when no worker serves the accept
        queue that they sit in. So a window waits only until nothing moves. A window in which
        nothing moved at all doubles the next one, and ``patience`` applies to all windows together.
        The wait ends early if it is long compared with the answers that did arrive.

        :param known: connections that have answered before: they show how long an answer takes
        """
        yardstick = Asking(self._nonce)
        yardstick.ask(known, patience)
        self._slowest = yardstick._slowest
        late: Dict[int, bytes] = {}
        start, size = 0, WINDOW
        while start < len(picked):
            window = picked[start : start + size]
            start += size
            self._send(window)
            moved = False
            while self._waiting and self._hear():
                moved = True
            size = WINDOW if moved else min(2 * size, LARGEST_WINDOW)
            late.update(self._waiting)
            self._waiting.clear()
        self._waiting = late
        if self._slowest:
            patience = min(patience, max(LEAST_PATIENCE, SLOWER * self._slowest))
        ends = time.monotonic() + patience
        while self._waiting and time.monotonic() < ends:
            self._hear()
        return self._failed.union(self._waiting)

    def _send(self, picked: Sequence[Numbered]) -> None:
        self._sent = time.monotonic()
        for number, fd in picked:
            request = wire.echo_request(self._nonce, number & 0xFFFFFFFF)
            try:
                os.write(fd, request)
            except OSError:
                self._failed.add(fd)
                continue
            self._waiting[fd] = wire.echo_reply(self._nonce, request) or b""

    def _hear(self) -> bool:
        """Read the answers that arrive within :data:`LULL_MS`; return whether any did."""
        moved = sweep.ready(list(self._waiting), timeout_ms=LULL_MS)
        for fd, _ in moved:
            expected = self._waiting.pop(fd)
            try:
                found = os.read(fd, wire.ECHO_BYTES)
            except OSError:
                found = b""
            if found == expected:
                self.answered += 1
                self._slowest = max(self._slowest, time.monotonic() - self._sent)
            elif found:
                self.wrong += 1
            else:
                self._failed.add(fd)
        return bool(moved)
