"""Echo rounds of a client worker: one byte on every held connection, one byte back.

It is as if one character were typed in each of many sessions. In a pipelined round, a worker writes
while servers work on what it has written before. Up to a window is under way; once it is full, the
worker reads the older half. It waits only for the last connection of that half, because an epoll
set is served in order: so one wake-up serves all of them. A connection without an answer by then is
looked at again with the next half, and put aside after a lull. So a silent connection delays no
other.
"""

from __future__ import annotations

import os
import select
import time
from array import array
from itertools import repeat
from typing import Callable, Iterable, List, Optional, Sequence, Set, Tuple

from bench import wire
from bench.agent import board as cell
from bench.agent import sweep
from bench.agent.histogram import BUCKET, QUICK

LULL_MS, SLOWER = 200, 5
"""A connection without an answer for the lull is put aside until the others are done. The lull is
at least ``LULL_MS``, and at least ``SLOWER`` times as long as answers of this round have taken."""

LARGEST_WINDOW = 1 << 13
"""The most connections under way when none answers: then windows double, so that there are few
lulls."""

MOST_SILENCES = 8
"""Connections without an answer that end a sequential round: each delays all that come after it."""

_BYTES = [bytes([value]) for value in range(256)]
_MOST = 2
"""Bytes to read for the one that is expected: a second byte would be wrong."""

_clock = time.perf_counter_ns

Waiting = Tuple[int, bytes, int]
"""(descriptor, the expected answer, when its byte was written, ns)."""

Heard = Tuple[Optional[bytes], int]
"""(what was read, when, ns); None: nothing has arrived, empty: closed."""


class Keystrokes:
    """One round of one worker, and its outcome."""

    def __init__(self, nonce: str, common: memoryview, fds: array[int], first: int) -> None:
        """Prepare a round.

        :param first: the byte for the first of ``fds``; it is one more for each next descriptor
        """
        self.asked = self.answered = self.wrong = 0
        self.silent: Set[int] = set()
        """Descriptors that did not answer in time, or were closed."""
        self.latency = [0] * wire.BUCKETS
        self._common, self._fds, self._first = common, fds, first
        self._answers = [bytes([value]) for value in wire.round_answers(nonce)]
        self._waiting: List[Waiting] = []
        self._late: List[Waiting] = []
        self._looked = 0
        self._lull = LULL_MS * 1_000_000  # ns
        self._longest = self._lull

    def pipelined(
        self, places: Sequence[int], window: int, patience: float, pass_on: Callable[[], None]
    ) -> None:
        """Ask on the descriptors at ``places``, up to ``window`` under way at a time.

        :param patience: seconds after which a missing answer counts as none
        :param pass_on: called once when only stragglers are left
        """
        at, half, largest = 0, max(1, window // 2), max(window, LARGEST_WINDOW)
        wide, self._longest = window, max(self._lull, int(patience * 1e9))
        while (at < len(places) or self._waiting) and not self._common[cell.OVER]:
            if at < len(places) and len(self._waiting) + half <= wide:
                self._send(places[at : at + half])
                at += half
                continue
            wide = window if self._hear(half) else min(2 * wide, largest)
            self._look()
        if self._late:
            pass_on()
        self._wait(int(patience * 1e9))

    def one_by_one(self, places: Iterable[int], patience: float) -> None:
        """Ask on one connection after the other, each when the one before has answered."""
        poll, fds, common = select.poll(), self._fds, self._common
        for place in places:
            if common[cell.OVER] or common[cell.SILENCES] >= MOST_SILENCES:
                return
            fd, value = fds[place], (self._first + place) & 0xFF
            self.asked += 1
            poll.register(fd, select.POLLIN)
            began = _clock()
            try:
                os.write(fd, _BYTES[value])
                came = poll.poll(patience * 1000)
                found = os.read(fd, _MOST) if came else None
            except OSError:
                found = b""
            ended = _clock()
            poll.unregister(fd)
            self._take((fd, self._answers[value], began), (found or b"", ended))
            if found is None:
                common[cell.SILENCES] += 1

    def _send(self, places: Sequence[int]) -> None:
        """Write a byte on each connection. The loop runs in C."""
        fds = [self._fds[place] for place in places]
        values = [(self._first + place) & 0xFF for place in places]
        steps = zip(iter(_clock, -1), map(os.write, fds, [_BYTES[value] for value in values]))
        done: List[Tuple[int, int]] = []
        while len(done) < len(fds):
            try:
                done.extend(steps)
            except OSError:  # of the connection after the last one done
                done.append((0, 0))
        self.asked += len(fds)
        wait, answers = self._waiting.append, self._answers
        for fd, value, (began, written) in zip(fds, values, done):
            if written:
                wait((fd, answers[value], began))
            else:
                self.silent.add(fd)

    def _hear(self, count: int) -> bool:
        """Wait for the last of the oldest ``count``, at most a lull; read the answers that came.

        :return: whether any has; if not, all that are waited for count as late
        """
        oldest, rest = self._waiting[:count], self._waiting[count:]
        sweep.ready([oldest[-1][0]], self._lull // 1_000_000)
        found = zip(oldest, _read([fd for fd, _, _ in oldest]))
        left = [one for one, heard in found if not self._take(one, heard)]
        moved = len(left) < len(oldest)
        if moved:
            self._heard_after(oldest[0][2])
        since = _clock() - self._lull
        left += rest
        late = [one for one in left if one[2] < since] if moved else left
        self._late += late
        self._waiting = left[len(late) :]  # in the order in which they were written
        return moved

    def _heard_after(self, began: int) -> None:
        """Adapt the lull to answers that have just arrived, to bytes written at ``began``."""
        self._lull = max(self._lull, min(self._longest, SLOWER * (_clock() - began)))

    def _take(self, one: Waiting, heard: Heard) -> bool:
        """Count what was read on a connection; return whether anything was."""
        fd, wanted, began = one
        reply, ended = heard
        if reply == wanted:
            spent = (ended - began) // 1000
            self.latency[BUCKET[spent] if spent < QUICK else wire.bucket_of(spent)] += 1
            self.answered += 1
        elif reply:
            self.wrong += 1
        elif reply is None:
            return False
        else:
            self.silent.add(fd)
        return True

    def _look(self, timeout_ms: int = 0) -> None:
        """Read the answers of late connections that have arrived meanwhile, once in a lull."""
        now = _clock()
        if not self._late or (not timeout_ms and now - self._looked < LULL_MS * 1_000_000):
            return
        moved = {fd for fd, _ in sweep.ready([fd for fd, _, _ in self._late], timeout_ms)}
        came = [one for one in self._late if one[0] in moved]
        if came:
            self._heard_after(came[-1][2])
        taken = zip(came, _read([fd for fd, _, _ in came]))
        missing = {one[0] for one, heard in taken if not self._take(one, heard)}
        self._late = [one for one in self._late if one[0] not in moved or one[0] in missing]
        self._looked = _clock()

    def _wait(self, longest: int) -> None:
        """Wait for the late connections, each for ``longest`` ns after its byte was written."""
        while self._late and not self._common[cell.OVER]:
            now = _clock()
            overdue = {fd for fd, _, began in self._late if now - began >= longest}
            self.silent |= overdue
            self._late = [one for one in self._late if one[0] not in overdue]
            if self._late:
                soonest = min(began for _, _, began in self._late)
                left = (soonest + longest - now) // 1_000_000
                self._look(max(1, min(LULL_MS, left)))


def _read(fds: Sequence[int]) -> List[Heard]:
    """Read what has arrived on each connection. The loop runs in C."""
    steps = zip(map(os.read, fds, repeat(_MOST)), iter(_clock, -1))
    found: List[Heard] = []
    while len(found) < len(fds):
        try:
            found.extend(steps)
        except BlockingIOError:  # of the connection after the last one read
            found.append((None, 0))
        except OSError:
            found.append((b"", 0))
    return found
