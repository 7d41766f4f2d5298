"""The client's side of an agent: the plan cut into workers' shares."""

from __future__ import annotations

from typing import Callable, List

from bench import wire
from bench.agent import board as cell
from bench.agent import workers
from bench.agent.connector import Block, Connector

Ring = Callable[[bytes], None]


class Client:
    """Everything that ``prepare`` started. The servers have been proven before."""

    def __init__(self, spec: wire.ClientSpec) -> None:
        self.spec = spec
        self.asked = sum(block["count"] for block in spec["blocks"])
        self.count = workers.how_many(self.asked, workers.capacity())
        self._shares = shares(spec["blocks"], self.count)
        self.board = cell.Board(self.count)
        self.crew = workers.Crew(self.count, self._work)

    def _work(self, worker: int, orders: int, ring: Ring) -> None:
        share = self._shares[worker]
        self._shares = []
        Connector(self.board, worker, orders, ring, self.spec, share).run()

    def lost(self, worker: int) -> None:
        """A worker died: what it held is gone."""
        row = self.board.row(worker)
        row[cell.HELD] = row[cell.IN_FLIGHT] = 0

    def quotas(self, sample: int) -> None:
        """Spread a sample over the workers by what each holds, exactly."""
        held = self.board.column(cell.HELD).tolist()
        total, before = sum(held), 0
        sample = min(sample, total)
        for worker, mine in enumerate(held):
            row = self.board.row(worker)
            after = before + mine
            row[cell.QUOTA] = sample * after // total - sample * before // total if total else 0
            before = after


def shares(blocks: List[wire.TupleBlock], count: int) -> List[List[Block]]:
    """Cut the plan into ``count`` consecutive shares whose sizes differ by at most one."""
    total = sum(block["count"] for block in blocks)
    cut: List[List[Block]] = [[] for _ in range(count)]
    base = worker = 0
    for block in blocks:
        taken = 0
        while taken < block["count"]:
            end = total * (worker + 1) // count
            size = min(block["count"] - taken, end - base)
            if not size:
                worker += 1
                continue
            target = (block["target"], block["target_port"])
            first = block["first_port"] + taken
            cut[worker].append(Block(block["source"], first, size, target, base))
            taken += size
            base += size
    return cut
