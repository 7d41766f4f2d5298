"""The board: counters of all workers in one shared anonymous mapping.

Each worker writes only its own row, and the parent reads all rows. So no connection costs a message
or a lock. A row is a sequence of signed 64-bit cells. A cell is written as a whole, so a reader
sees the old or the new value, never a torn one.
"""

from __future__ import annotations

import errno
import mmap
from typing import Dict, List

from bench import wire

# Cells of a worker's row.
HELD, OPENED, CLOSED, LOST, RETRIED, IN_FLIGHT = range(6)
ASKED, ANSWERED, WRONG, DROPPED, ALIVE, DEAD = range(6, 12)
FULL, TRIED = 12, 13
"""``FULL``: 1 while accept(2) fails with EMFILE. ``TRIED``: connections of the worker's share that
were tried at least once.
"""
QUOTA, GOAL = 14, 15
"""Written by the parent. ``QUOTA``: connections to ask or to churn. ``GOAL``: connections of the
worker's share that the ramp is to have tried.
"""
SILENT = 16
"""Connections that did not answer in a round."""
ERRORS = 17
ERRNOS = 256
LATENCY = ERRORS + ERRNOS
ROUND_LATENCY = LATENCY + wire.BUCKETS
ROW = ROUND_LATENCY + wire.BUCKETS

# Cells of the common row: written by the parent, read by the workers. HALT is also set by the
# worker that brings the total of LOST to MOST_LOST.
HALT, ACTIVE, ANSWER, HOW, RATE, PATIENCE, MOST_LOST, FRESH, DROP, STRETCH, PAUSE = range(11)
NUMBER, WINDOW, SEQUENTIAL, SILENCES, OVER = range(11, 16)
CHURN_MS = 16
COMMON = 17

TAGGED, BYTE = 1, 2
"""Values of ``ANSWER``: echoes with a tag each, or rounds of single bytes; 0 is neither."""

RST, FIN = 0, 1
"""Values of ``HOW``: close with SO_LINGER 1,0 or with a FIN. ``PATIENCE`` is in ms.

``FRESH``: send echoes only on connections of the last ramp. ``DROP``: reset connections that do not
answer. ``STRETCH``: accept beyond the planned room, until accept(2) fails. ``PAUSE``: accept
nothing. ``NUMBER``, ``WINDOW``, ``SEQUENTIAL``: of a round, see :mod:`bench.wire`. ``SILENCES``:
silent connections of a sequential round, counted by the worker whose turn it is. ``OVER``: end
rounds at once, and drain without a pace. ``CHURN_MS``: how long churn lasts.
"""


class Board:
    """Shared counters of ``workers`` workers. Must be created before the fork."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        # MAP_SHARED | MAP_ANONYMOUS (mmap(2)): inherited over fork, freed with the last process.
        self._map = mmap.mmap(-1, 8 * (COMMON + workers * ROW))
        self.cells = memoryview(self._map).cast("q")
        self.common = self.cells[:COMMON]
        self._parents: Dict[int, int] = {}

    def row(self, worker: int) -> memoryview:
        """Return the row of one worker."""
        start = COMMON + worker * ROW
        return self.cells[start : start + ROW]

    def column(self, cell: int) -> memoryview:
        """Return one cell of every worker, in order."""
        return self.cells[COMMON + cell :: ROW]

    def total(self, cell: int) -> int:
        """Return the sum of one cell over all workers."""
        return int(sum(self.column(cell)))

    def add(self, errors: Dict[int, int]) -> None:
        """Count errors of the parent process, given as errno to number of times."""
        for code, times in errors.items():
            self._parents[code] = self._parents.get(code, 0) + times

    def errors(self) -> Dict[str, int]:
        """Return the errors so far, by errno name."""
        sums = self._sums(ERRORS, ERRNOS)
        for code, times in self._parents.items():
            sums[code] += times
        return {name(code): n for code, n in enumerate(sums) if n}

    def latency(self) -> Dict[str, int]:
        """Return connect latency: bucket number (as text, for a JSON key) to its count."""
        return {str(at): n for at, n in enumerate(self._sums(LATENCY, wire.BUCKETS)) if n}

    def begin_round(self) -> None:
        """Clear the counters of the previous round."""
        self.common[SILENCES] = 0
        none = memoryview(bytes(8 * wire.BUCKETS)).cast("q")
        for worker in range(self.workers):
            self.row(worker)[ROUND_LATENCY:] = none

    def round_latency(self) -> Dict[str, int]:
        """Return the latency of the latest round, in the form of :meth:`latency`."""
        sums = self._sums(ROUND_LATENCY, wire.BUCKETS)
        return {str(at): n for at, n in enumerate(sums) if n}

    def _sums(self, start: int, length: int) -> List[int]:
        rows = [self.row(worker)[start : start + length].tolist() for worker in range(self.workers)]
        return list(map(sum, zip(*rows)))


def name(code: int) -> str:
    """Return the errno's name, as in errno(3)."""
    return errno.errorcode.get(code, f"E{code}")
