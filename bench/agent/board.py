"""The board: counters of all workers in one shared anonymous mapping.

Workers write their own row and nobody else's, the parent reads all rows, so there is neither a
message nor a lock per connection. A row is a run of signed 64-bit cells; a cell is written whole,
so a reader sees an old or a new value, never a torn one.
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
"""``FULL``: 1 while accept(2) says EMFILE. ``TRIED``: connections of its share tried at least once.
"""
QUOTA, GOAL = 14, 15
"""Written by the parent: connections to ask or to churn, and how many of its share to have tried.
"""
SILENT = 16
"""Connections without an answer in a round."""
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

``FRESH``: echoes only on what the last ramp opened. ``DROP``: reset who does not answer.
``STRETCH``: accept beyond the room that is planned for, as far as accept(2) goes. ``PAUSE``: accept
nothing. ``NUMBER``, ``WINDOW``, ``SEQUENTIAL``: of a round, see :mod:`bench.wire`. ``SILENCES``: of
a sequential round, counted by the one worker whose turn it is. ``OVER``: rounds end as they are,
and a drain takes no more time. ``CHURN_MS``: how long churn lasts.
"""


class Board:
    """Shared counters of ``workers`` workers. Made before the fork."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        # MAP_SHARED | MAP_ANONYMOUS (mmap(2)): inherited over fork, gone with the last process.
        self._map = mmap.mmap(-1, 8 * (COMMON + workers * ROW))
        self.cells = memoryview(self._map).cast("q")
        self.common = self.cells[:COMMON]
        self._parents: Dict[int, int] = {}

    def row(self, worker: int) -> memoryview:
        """A worker's own cells."""
        start = COMMON + worker * ROW
        return self.cells[start : start + ROW]

    def column(self, cell: int) -> memoryview:
        """One cell of every worker, in order."""
        return self.cells[COMMON + cell :: ROW]

    def total(self, cell: int) -> int:
        """Sum of one cell over all workers."""
        return int(sum(self.column(cell)))

    def add(self, errors: Dict[int, int]) -> None:
        """Count errors of the parent itself, errno to number of times."""
        for code, times in errors.items():
            self._parents[code] = self._parents.get(code, 0) + times

    def errors(self) -> Dict[str, int]:
        """Errors so far, by errno name."""
        sums = self._sums(ERRORS, ERRNOS)
        for code, times in self._parents.items():
            sums[code] += times
        return {name(code): n for code, n in enumerate(sums) if n}

    def latency(self) -> Dict[str, int]:
        """Connect latency: bucket number (as text, it becomes a JSON key) to its count."""
        return {str(at): n for at, n in enumerate(self._sums(LATENCY, wire.BUCKETS)) if n}

    def begin_round(self) -> None:
        """Nothing has come of this round yet."""
        self.common[SILENCES] = 0
        none = memoryview(bytes(8 * wire.BUCKETS)).cast("q")
        for worker in range(self.workers):
            self.row(worker)[ROUND_LATENCY:] = none

    def round_latency(self) -> Dict[str, int]:
        """The latest round's latency, as :meth:`latency`."""
        sums = self._sums(ROUND_LATENCY, wire.BUCKETS)
        return {str(at): n for at, n in enumerate(sums) if n}

    def _sums(self, start: int, length: int) -> List[int]:
        rows = [self.row(worker)[start : start + length].tolist() for worker in range(self.workers)]
        return list(map(sum, zip(*rows)))


def name(code: int) -> str:
    """The errno's name, as in errno(3)."""
    return errno.errorcode.get(code, f"E{code}")
