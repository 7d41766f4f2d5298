"""Echo rounds of a client worker: one byte on every held connection, one byte back.

As if one character were typed in each of many sessions. Pipelined, a worker writes while servers
work on what it has written before: up to a window is under way, and once it is full the older half
is read. It waits for the last of that half alone, since an epoll set is served in order: one
wake-up for all of them. Who is not among the others then is looked at again with the next half, and
after a lull left aside, so that a silent connection holds up nobody.
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
"""A connection without an answer for so long is left aside until the others are done, ms: so long
at the least, and so many times as long as answers of this round have taken."""

LARGEST_WINDOW = 1 << 13
"""Under way at a time where nobody answers: there windows double, so that lulls are few."""

MOST_SILENCES = 8
"""Connections without an answer that end a sequential round: each holds up all that come after."""

_BYTES = [bytes([value]) for value in range(256)]
_MOST = 2
"""Bytes that are read for the one that is expected: a second one would be wrong."""

_clock = time.perf_counter_ns

Waiting = Tuple[int, bytes, int]
"""(descriptor, the answer that is expected, when its byte was written, ns)."""

Heard = Tuple[Optional[bytes], int]
"""(what was read, when, ns); None: nothing has come, empty: closed."""


class Keystrokes:
    """One round of one worker, and what has come of it."""

    def __init__(self, nonce: str, common: memoryview, fds: array[int], first: int) -> None:
        """``first``: the byte for the first of ``fds``; each further one's is one more."""
        self.asked = self.answered = self.wrong = 0
        self.silent: Set[int] = set()
        """Descriptors on which no answer came in time, or that were closed."""
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

        :param patience: seconds until an answer that has not come counts as none
        :param pass_on: called once where only stragglers are left
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
        """Ask on one connection after the other, each once the one before has answered."""
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
        """Write on these; the loop is the interpreter's own."""
        fds = [self._fds[place] for place in places]
        values = [(self._first + place) & 0xFF for place in places]
        steps = zip(iter(_clock, -1), map(os.write, fds, [_BYTES[value] for value in values]))
        done: List[Tuple[int, int]] = []
        while len(done) < len(fds):
            try:
                done.extend(steps)
            except OSError:  # of the one after the last done
                done.append((0, 0))
        self.asked += len(fds)
        wait, answers = self._waiting.append, self._answers
        for fd, value, (began, written) in zip(fds, values, done):
            if written:
                wait((fd, answers[value], began))
            else:
                self.silent.add(fd)

    def _hear(self, count: int) -> bool:
        """Wait for the last of the oldest so many, at most a lull; take what has come of them.

        :return: whether anything has; else all that is waited for is late now
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
        """Answers to what was written then have just come: the lull is long compared with that."""
        self._lull = max(self._lull, min(self._longest, SLOWER * (_clock() - began)))

    def _take(self, one: Waiting, heard: Heard) -> bool:
        """Count what was read on a connection; returns whether anything was."""
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
        """See who of the late has answered meanwhile, once in a lull."""
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
        """Wait for the late, each so long, ns."""
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
    """What has come on each; the loop is the interpreter's own."""
    steps = zip(map(os.read, fds, repeat(_MOST)), iter(_clock, -1))
    found: List[Heard] = []
    while len(found) < len(fds):
        try:
            found.extend(steps)
        except BlockingIOError:  # of the one after the last found
            found.append((None, 0))
        except OSError:
            found.append((b"", 0))
    return found
