"""The server's side of an agent: listeners, workers, and whose turn it is to accept."""

from __future__ import annotations

import contextlib
import math
import os
import socket
from typing import Callable, List, Tuple

from bench import wire
from bench.agent import board as cell
from bench.agent import control, workers
from bench.agent.acceptor import Acceptor

Ring = Callable[[bytes], None]

SIGMAS = 5
"""Headroom of SO_REUSEPORT workers in standard deviations: the kernel spreads by hash, so a
worker's share is binomial, and at 5 sigma one run in a million overfills one."""


class CannotListen(OSError):
    """An endpoint that cannot be bound; the text names address and port."""


class Server:
    """Everything that ``serve`` started."""

    def __init__(self, spec: wire.ServerSpec) -> None:
        self.spec = spec
        room = workers.capacity(extra=len(spec["endpoints"]))
        reuse = spec["listener"] == "reuseport"
        self.room = room
        self.count = workers.how_many(spec["connections"], usual_share(room) if reuse else room)
        with contextlib.ExitStack() as undo:
            self.keeper = undo.enter_context(listener(spec["control"], 128, reuse=False))
            self._sets: List[List[socket.socket]] = []
            for _ in range(self.count if reuse else 1):
                self._sets.append([])
                for endpoint in spec["endpoints"]:
                    made = undo.enter_context(listener(endpoint, spec["backlog"], reuse))
                    made.setblocking(False)
                    self._sets[-1].append(made)
            self.board = cell.Board(self.count)
            self.crew = workers.Crew(self.count, self._work)
            undo.pop_all()
        if reuse:
            for made in self._all():
                made.close()  # else a queue that no worker drains would stay
        control.Doorkeeper(self.keeper, spec["nonce"], spec["endpoints"]).start()
        self._full = [False] * self.count
        self._batons = self.count if reuse else min(spec["acceptors"], self.count)
        self._accepting = [False] * self.count
        self._shut = False
        self.hand_out()

    def _all(self) -> List[socket.socket]:
        return [made for group in self._sets for made in group]

    def _work(self, worker: int, orders: int, ring: Ring) -> None:
        self.keeper.close()
        mine = self._sets[worker % len(self._sets)]
        for group in self._sets:
            if group is not mine:
                for made in group:
                    made.close()
        Acceptor(self.board, worker, orders, ring, self.spec, mine, self.room).run()

    def passed(self, worker: int) -> None:
        """A worker is full and has laid its baton down."""
        self._accepting[worker] = False
        self.hand_out()

    def lost(self, worker: int) -> None:
        """A worker died."""
        self._accepting[worker] = False
        self._full[worker] = True
        row = self.board.row(worker)
        row[cell.HELD] = 0
        self.hand_out()

    def hand_out(self) -> None:
        """Give batons that lie about to workers with room."""
        if self._shut:
            return
        held = self.board.column(cell.HELD).tolist()
        for worker in range(self.count):
            if sum(self._accepting) >= self._batons:
                return
            if not self._accepting[worker] and not self._full[worker] and held[worker] < self.room:
                self._accepting[worker] = True
                self.crew.tell(worker, b"A")

    def shut(self) -> None:
        """Memory is at its floor: let nobody in any more.

        A backlog of 0 makes the kernel drop further SYNs (tcp_conn_request(), net/ipv4/
        tcp_input.c), so no queued connection can grow behind the acceptors' back.
        """
        self._shut = True
        self.board.common[cell.HALT] = 1
        for worker in range(self.count if len(self._sets) > 1 else 1):
            self.crew.tell(worker, b"H")


def usual_share(room: int) -> int:
    """Mean load of a worker whose load stays within ``room`` at :data:`SIGMAS`."""
    return max(1, math.floor((math.sqrt(room + SIGMAS**2 / 4) - SIGMAS / 2) ** 2))


def listener(endpoint: Tuple[str, int], backlog: int, reuse: bool) -> socket.socket:
    """A listening socket. :raises CannotListen: naming address and port."""
    address, port = endpoint
    made = socket.socket(control.family_of(address), socket.SOCK_STREAM)
    try:
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Without SO_REUSEADDR a TIME_WAIT of an earlier run would keep the port (socket(7)).
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((address, port))
        made.listen(backlog)
    except OSError as error:
        made.close()
        raise CannotListen(
            error.errno, f"cannot listen on {address}:{port}: {os.strerror(error.errno or 0)}"
        ) from error
    return made
