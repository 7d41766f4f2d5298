"""One order, carried out by many workers, a few at a time."""

from __future__ import annotations

from typing import Callable, Iterable, List, Optional, Set

from bench.agent import board as cell
from bench.agent.workers import PASS, Crew


class Round:
    """An order on its way through the crew: ``width`` workers have their turn at a time.

    A worker's turn ends when it is done, or earlier if it hands the turn on (PASS) with work left.
    ``then`` is called once, when all workers are done.
    """

    def __init__(
        self,
        crew: Crew,
        common: memoryview,
        order: bytes,
        width: int,
        then: Callable[[], None],
        only: Optional[Iterable[int]] = None,
    ) -> None:
        alive = set(crew.pids.values())
        self._crew, self._common, self._order, self._then = crew, common, order, then
        self._queue: List[int] = sorted(alive if only is None else alive & set(only), reverse=True)
        self._turn: Set[int] = set()
        self._busy: Set[int] = set()
        self._width = width

    def begin(self) -> None:
        """Give the first workers their turn."""
        self._next()

    def rung(self, worker: int, what: bytes) -> None:
        """Note that a worker has handed on its turn or is done."""
        self._turn.discard(worker)
        if what != PASS:
            self._busy.discard(worker)
        self._next()

    def lost(self, worker: int) -> None:
        """Take its turn from a worker that died."""
        self._turn.discard(worker)
        if worker in self._queue:
            self._queue.remove(worker)
        if worker in self._busy:
            self._busy.discard(worker)
            self._next()

    def _next(self) -> None:
        fresh = []
        while self._queue and len(self._turn) < self._width:
            worker = self._queue.pop()
            self._turn.add(worker)
            self._busy.add(worker)
            fresh.append(worker)
        self._common[cell.ACTIVE] = len(self._turn)
        for worker in fresh:
            self._crew.tell(worker, self._order)
        if not self._busy:
            self._then()
