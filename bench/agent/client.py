"""The client's side of an agent: the plan, divided into shares for the workers."""

from __future__ import annotations

from typing import Callable, List, Sequence

from bench import wire
from bench.agent import board as cell
from bench.agent import workers
from bench.agent.connector import Block, Connector

Ring = Callable[[bytes], None]

SLICE = 32
"""Connections of a block that are tried in a row when blocks take turns."""


class Client:
    """Everything that ``prepare`` starts. The servers have proven themselves before."""

    def __init__(self, spec: wire.ClientSpec) -> None:
        self.spec = spec
        self.asked = sum(block["count"] for block in spec["blocks"])
        files, limit = workers.open_files(spec["nofile"]), spec["limit"]
        room = workers.capacity(files)
        count = workers.how_many(self.asked, room, files, spec["workers"], limit)
        refused = workers.muster(self._start, count, limit)
        self.board.add(refused)

    def _start(self, count: int) -> None:
        self.count = count
        self._shares = shares(self.spec["blocks"], count)
        self._sizes = [sum(block.size for block in share) for share in self._shares]
        self.board = cell.Board(count)
        self.crew = workers.Crew(count, self._work)

    def _work(self, worker: int, orders: int, ring: Ring) -> None:
        share = ordered(self.spec, self._shares[worker])
        self._shares = []
        Connector(self.board, worker, orders, ring, self.spec, share).run()

    def lost(self, worker: int) -> None:
        """Clear the counters of a worker that died, since its connections are gone."""
        row = self.board.row(worker)
        row[cell.HELD] = row[cell.IN_FLIGHT] = 0

    @property
    def tried(self) -> int:
        """Connections that have been tried at least once."""
        return self.board.total(cell.TRIED)

    def aim(self, upto: int) -> List[int]:
        """Give the workers their goals for a ramp up to ``upto`` tried connections.

        :return: the workers that have any to try
        """
        alive = set(self.crew.pids.values())
        tried = self.board.column(cell.TRIED).tolist()
        most = [
            size if worker in alive else tried[worker] for worker, size in enumerate(self._sizes)
        ]
        goals = levels(tried, most, upto)
        for worker, goal in enumerate(goals):
            self.board.row(worker)[cell.GOAL] = goal
        return [worker for worker, goal in enumerate(goals) if goal > tried[worker]]

    def quotas(self, sample: int) -> None:
        """Divide a sample exactly among the workers, in proportion to what each holds."""
        spread(self.board, min(sample, self.board.total(cell.HELD)))


def spread(board: cell.Board, amount: int) -> None:
    """Set each worker's quota: its exact part of ``amount``, in proportion to what it holds."""
    held = board.column(cell.HELD).tolist()
    total, before = sum(held), 0
    for worker, mine in enumerate(held):
        row = board.row(worker)
        after = before + mine
        row[cell.QUOTA] = amount * after // total - amount * before // total if total else 0
        before = after


def shares(blocks: List[wire.TupleBlock], count: int) -> List[List[Block]]:
    """Divide the plan into ``count`` consecutive shares whose sizes differ by at most one."""
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


def levels(tried: Sequence[int], most: Sequence[int], upto: int) -> List[int]:
    """Return goals that add up to ``upto``, or come as near as possible.

    The workers that have tried least are raised first. So a worker that has reached its limit, and
    has tried in vain since, comes last.

    :param tried: by each worker so far; its goal is never lower than that
    :param most: the most that each worker can try
    """

    def raised(level: int) -> List[int]:
        return [max(have, min(size, level)) for have, size in zip(tried, most)]

    low, high = 0, max(most, default=0)  # the highest level that stays within ``upto``
    while low < high:
        middle = (low + high + 1) // 2
        if sum(raised(middle)) <= upto:
            low = middle
        else:
            high = middle - 1
    goals = raised(low)
    left = upto - sum(goals)
    for worker, size in enumerate(most):
        if left <= 0:
            break
        if goals[worker] == low < size:
            goals[worker] += 1
            left -= 1
    return goals


def ordered(spec: wire.ClientSpec, share: List[Block]) -> List[Block]:
    """Return a worker's share in the order in which it is tried.

    Whole blocks one after the other are fastest. Blocks take turns in two cases: the kernel chooses
    source ports, which run out for each source separately; or the run looks for a limit with
    several targets, where the first target would be full long before the last.
    """
    several = len({block.target for block in share}) > 1
    if spec["source_ports"] == "kernel" or (spec["limit"] and several):
        return interleaved(share)
    return share


def interleaved(share: List[Block]) -> List[Block]:
    """Return the same four-tuples in slices that take turns, to use up all blocks evenly."""
    turns = [
        (at / block.size, number, at)
        for number, block in enumerate(share)
        for at in range(0, block.size, SLICE)
    ]
    cut: List[Block] = []
    base = share[0].base if share else 0
    for _, number, at in sorted(turns):
        block = share[number]
        size = min(SLICE, block.size - at)
        cut.append(block._replace(first_port=block.first_port + at, size=size, base=base))
        base += size
    return cut
