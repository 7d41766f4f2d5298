"""A client worker: it opens its share of the plan, holds it, asks, verifies, and closes.

On a local network, the three segments of a handshake often pass within connect(2) itself. A second
connect(2) is the cheapest way to ask, and it shows that most connections are complete. Only the
connects that are still under way go to poll(2).
"""

from __future__ import annotations

import _socket
import os
import socket
import time
from array import array
from bisect import bisect_right
from itertools import repeat, tee
from typing import Callable, Iterator, List, NamedTuple, Tuple

from bench import wire
from bench.agent import board as cell
from bench.agent import sweep
from bench.agent.attempts import COMPLETE, KIND, UNDER_WAY, Attempts
from bench.agent.churn import Churn
from bench.agent.control import family_of
from bench.agent.histogram import BUCKET, QUICK
from bench.agent.holder import Holder
from bench.agent.sockets import IP_BIND_ADDRESS_NO_PORT
from bench.agent.workers import DONE, PASS

BATCH = 128
"""New connects that are started before the connects under way, the pace and orders are looked at
again."""

NAP = 0.05
"""Longest sleep of a worker that only waits for a retry, seconds."""

PUBLISH_EVERY = 0.2
"""Seconds between two copies of the latency histogram to the board."""

_REUSE = socket.SOL_SOCKET, socket.SO_REUSEADDR
_NO_PORT = socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT
_clock = time.perf_counter_ns
_make = _socket.socket
_set, _bind = _socket.socket.setsockopt, _socket.socket.bind
_connect, _detach = _socket.socket.connect_ex, _socket.socket.detach


class Block(NamedTuple):
    """Consecutive source ports from one address to one target."""

    source: str
    first_port: int
    size: int
    target: Tuple[str, int]
    base: int
    """Number of the first connection within the agent's plan."""


Names = Iterator[Tuple[str, int]]


def _planned(block: Block, skip: int, count: int) -> Names:
    """Return the names to bind to, with the planned ports."""
    first = block.first_port + skip
    return zip(repeat(block.source), range(first, first + count))


def _left_to_kernel(block: Block, _: int, count: int) -> Names:
    """Return the names to bind to when connect(2) chooses the port."""
    return repeat((block.source, 0), count)


class Connector:
    """One client worker: its share of the plan, and the connections that it holds."""

    def __init__(
        self,
        board: cell.Board,
        worker: int,
        orders: int,
        ring: Callable[[bytes], None],
        spec: wire.ClientSpec,
        blocks: List[Block],
    ) -> None:
        self._row, self._common = board.row(worker), board.common
        base = blocks[0].base if blocks else 0
        self._held = Holder(self._row, self._common, spec["nonce"], base)
        self._orders, self._ring = orders, ring
        self._spec, self._blocks = spec, blocks
        self._starts = [0]
        for block in blocks:
            self._starts.append(self._starts[-1] + block.size)
        self._latency = [0] * wire.BUCKETS
        self._published = 0.0
        self._next = 0  # of this worker's connections, the first not yet tried
        self._goal = 0  # where this ramp ends
        self._at = 0  # its block
        self._attempts = Attempts(board, self._row, spec)
        self._turn = 0  # the place that churn continues from
        self._pace = sweep.Pace(BATCH)
        kernel = spec["source_ports"] == "kernel"
        self._names = _left_to_kernel if kernel else _planned
        self._option = _NO_PORT if kernel else _REUSE

    def run(self) -> None:
        """Carry out orders until the order to stop comes."""
        while True:
            order = os.read(self._orders, 1)
            if order == b"R":
                self._ramp()
            elif order == b"E":
                self._held.echo()
            elif order == b"K":
                self._held.round(lambda: self._ring(PASS))
            elif order == b"V":
                self._held.verify()
            elif order == b"C":
                self._churn_held()
            elif order == b"D":
                self._held.drain()
            else:
                self._abandon()
                self._held.reset_all()
                self._ring(DONE)
                return
            self._publish(final=True)
            self._ring(DONE)

    # Opening.

    def _ramp(self) -> None:
        passed = False
        self._goal = self._row[cell.GOAL]
        self._held.ramp_begins()
        self._pace = sweep.Pace(BATCH)  # empty: unused tokens of others are not saved up
        while not self._common[cell.HALT]:
            started = self._start()
            under_way = self._attempts.under_way
            if under_way:
                self._settle(0 if started else self._patience())
            elif not started and self._attempts.next_retry:
                time.sleep(self._patience())
            self._publish()
            if self._next < self._goal:
                if not started and not under_way:
                    time.sleep(0.001)  # paced, or other workers use up the window
            elif not len(self._attempts):
                return
            elif not passed:
                passed = True  # only stragglers are left: let the next worker begin
                self._ring(PASS)
        self._abandon()

    def _patience(self) -> float:
        """Return the seconds until something is due, at most :data:`NAP`."""
        if self._next < self._goal:
            return 0.001
        if self._attempts.next_retry:
            return min(NAP, max(0.001, self._attempts.next_retry - time.monotonic()))
        return NAP

    def _start(self) -> int:
        """Start the retries that are due and new connects; return how many."""
        rate = self._spec["connect_rate"] / max(1, self._common[cell.ACTIVE])
        due = self._attempts.due(BATCH)
        granted = self._pace.take(len(due), rate)
        self._attempts.put_back(due[granted:])
        for _, number, tries in due[:granted]:
            self._try_again(number, tries)
        left = self._goal - self._next
        wanted = min(BATCH - granted, left, self._attempts.window()) if left else 0
        if wanted <= 0:
            return granted
        wanted = self._pace.take(wanted, rate)
        return granted + (self._fresh(wanted) if wanted else 0)

    def _fresh(self, wanted: int) -> int:
        """Try the next ``wanted`` connections for the first time: the hot loop of the ramp.

        The loop runs in C: zip() takes one socket through all its steps before it turns to the
        next. So every connection is timed separately, and no bytecode runs for it.

        SO_REUSEADDR costs one call, 0.7 µs, and is worth it: a source port can serve several
        targets, and a port in TIME_WAIT can be used again (socket(7)). Both sockets must have set
        it, so it cannot wait until it is needed: a killed client would block its ports for a
        minute.
        """
        while self._next >= self._starts[self._at + 1]:
            self._at += 1
        block = self._blocks[self._at]
        skip = self._next - self._starts[self._at]
        wanted = min(wanted, block.size - skip)
        names = self._names(block, skip, wanted)
        level, option = self._option
        target = repeat(block.target)
        made = map(_make, repeat(family_of(block.source), wanted), repeat(KIND), repeat(0))
        to_set, to_bind, to_connect, to_ask, to_hold = tee(made, 5)
        steps = zip(
            map(_set, to_set, repeat(level), repeat(option), repeat(1)),
            map(_bind, to_bind, names),
            map(_connect, to_connect, target),
            map(_connect, to_ask, target),
            iter(_clock, -1),
            map(_detach, to_hold),
        )
        done: List[Tuple[None, None, int, int, int, int]] = []
        code = 0
        began = _clock()
        try:
            done.extend(steps)
        except OSError as error:  # of socket() or bind(), for the next connection
            code = error.errno or 0
        number, latency, hold = self._next, self._latency, self._held.fds.append
        for _, _, _, result, ended, fd in done:
            if result:
                self._unfinished(result, fd, began, number)
            else:
                hold(fd)
                spent = (ended - began) // 1000
                latency[BUCKET[spent] if spent < QUICK else wire.bucket_of(spent)] += 1
            began = ended
            number += 1
        if code:
            self._attempts.failed(code, number, 0)
            number += 1
        started = number - self._next
        self._next = number
        return started

    def _unfinished(self, code: int, fd: int, began: int, number: int) -> None:
        """Handle a first try that the second connect(2) did not show to be complete."""
        if code in COMPLETE:
            self._held.fds.append(fd)
        elif code in UNDER_WAY:
            family = family_of(self._block(number)[0].source)
            self._attempts.add(_make(family, KIND, 0, fd), began, number, 0)
        else:
            os.close(fd)
            self._attempts.failed(code, number, 0)

    def _try_again(self, number: int, tries: int) -> None:
        block, place = self._block(number)
        began = _clock()
        source = next(self._names(block, place, 1))
        made = self._attempts.open((source, block.target), self._option, began, number, tries)
        if made is not None:
            self._complete(made, began)

    def _settle(self, patience: float) -> None:
        """Complete or retry the connects that have ended."""
        settled = self._attempts.settle(patience, lambda number: self._block(number)[0].target)
        for code, made, began, number, tries in settled:
            if code:
                self._attempts.failed(code, number, tries)
            else:
                self._complete(made, began)

    def _complete(self, made: _socket.socket, began: int) -> None:
        self._held.fds.append(made.detach())
        self._timed(began)

    def _timed(self, began: int) -> None:
        """Add a connection that has just completed to the latency histogram."""
        self._latency[wire.bucket_of((_clock() - began) // 1000)] += 1

    def _block(self, number: int) -> Tuple[Block, int]:
        """Return the block of one of this worker's connections, and the place in the block."""
        at = bisect_right(self._starts, number) - 1
        return self._blocks[at], number - self._starts[at]

    def _abandon(self) -> None:
        """Keep the connects that have just completed, and close the rest."""
        self._settle(0)
        for made, _, _, _ in self._attempts.take_all():
            made.close()

    # Churn.

    def _churn_held(self) -> None:
        held = self._held
        churn = Churn(held.fds, held.away, held.silent, self._row, self._common, self._attempts)
        self._turn = churn.run(self._turn, self._timed, self._publish)
        held.drop_lost()

    def _publish(self, final: bool = False) -> None:
        self._held.count()
        self._attempts.publish()
        row = self._row
        row[cell.TRIED] = self._next
        now = time.monotonic()
        if final or now - self._published > PUBLISH_EVERY:
            self._published = now
            row[cell.LATENCY : cell.LATENCY + wire.BUCKETS] = memoryview(array("q", self._latency))
