"""The server's side of an agent: listeners, workers, and which workers may accept."""

from __future__ import annotations

import contextlib
import math
import os
import socket
from typing import Callable, List, Set, Tuple

from bench import wire
from bench.agent import board as cell
from bench.agent import control, workers
from bench.agent.acceptor import Acceptor

Ring = Callable[[bytes], None]

SIGMAS = 5
"""Headroom of SO_REUSEPORT workers in standard deviations. The kernel spreads connections by hash,
so a worker's share is binomial; at 5 sigma one run in a million overfills a worker."""


class CannotListen(OSError):
    """An endpoint cannot be bound; the text names address and port."""


class Server:
    """Everything that ``serve`` starts."""

    def __init__(self, spec: wire.ServerSpec) -> None:
        self.spec = spec
        self._reuse = spec["listener"] == "reuseport"
        files, limit = workers.open_files(spec["nofile"]), spec["limit"]
        self.room = workers.capacity(files, extra=len(spec["endpoints"]))
        # Beyond the planned room, accept(2) itself reports when a worker is full.
        self._stretches = limit or spec["workers"] > 0
        self.most = files if self._stretches else self.room
        room = usual_share(self.room) if self._reuse else self.room
        count = workers.how_many(spec["connections"], room, files, spec["workers"], limit)
        with contextlib.ExitStack() as undo:
            self.keeper = undo.enter_context(listener(spec["control"], 128, reuse=False))
            refused = workers.muster(self._start, count, limit)
            undo.callback(self._close_sets)
            undo.callback(self.crew.disband)
            self._doorkeeper = control.Doorkeeper(
                self.keeper,
                spec["nonce"],
                spec["endpoints"],
                spec["fronts"],
                [door for group in self._sets for door in group],
            )
            workers.begin(self._doorkeeper)
            undo.pop_all()
        self.board.add(refused)
        self._dead: Set[int] = set()
        self._batons = self.count if self._reuse else min(spec["acceptors"], self.count)
        self._accepting = [False] * self.count
        self._shut = False
        self._open = False

    def open(self) -> None:
        """Open the data ports to connections: until now they answered the handshake only.

        :raises OSError: if the doorkeeper does not release them.
        """
        self._doorkeeper.release()
        if self._reuse:  # a queue that no worker drains would keep its connections
            self._close_sets()
        self._open = True
        self.hand_out()

    def _close_sets(self) -> None:
        for group in self._sets:
            for door in group:
                door.close()

    def _start(self, count: int) -> None:
        self.count = count
        with contextlib.ExitStack() as undo:
            self._sets: List[List[socket.socket]] = []
            for _ in range(count if self._reuse else 1):
                self._sets.append([])
                for endpoint in self.spec["endpoints"]:
                    made = undo.enter_context(listener(endpoint, self.spec["backlog"], self._reuse))
                    made.setblocking(False)
                    self._sets[-1].append(made)
            self.board = cell.Board(count)
            self.board.common[cell.STRETCH] = int(self._reuse and self._stretches)
            self.crew = workers.Crew(count, self._work)
            undo.pop_all()

    def _work(self, worker: int, orders: int, ring: Ring) -> None:
        self.keeper.close()
        mine = self._sets[worker % len(self._sets)]
        for group in self._sets:
            if group is not mine:
                for made in group:
                    made.close()
        Acceptor(self.board, worker, orders, ring, self.spec, mine, (self.room, self.most)).run()

    def passed(self, worker: int) -> None:
        """Take the baton back from a worker that is full, and hand it out again."""
        self._accepting[worker] = False
        self.hand_out()

    def lost(self, worker: int) -> None:
        """Clear the counters of a worker that died, and hand out its baton."""
        self._accepting[worker] = False
        self._dead.add(worker)
        row = self.board.row(worker)
        row[cell.HELD], row[cell.FULL] = 0, 1
        self.hand_out()

    def hand_out(self) -> None:
        """Give free batons to workers that have room.

        If no worker has room, they go to workers on which accept(2) does not fail. If it fails on
        all, some workers keep trying: a connection that closes makes room again.
        """
        if self._shut or not self._open:
            return
        alive = [worker for worker in range(self.count) if worker not in self._dead]
        held, full = self.board.column(cell.HELD), self.board.column(cell.FULL)
        able = [worker for worker in alive if not full[worker]]
        roomy = [worker for worker in able if held[worker] < self.room]
        if self._stretches and not roomy:
            self.board.common[cell.STRETCH] = 1
            roomy = able or alive
        for worker in roomy:
            if sum(self._accepting) >= self._batons:
                return
            if not self._accepting[worker]:
                self._accepting[worker] = True
                self.crew.tell(worker, b"A")

    def shut(self) -> None:
        """Refuse new connections, because memory is at its floor.

        A backlog of 0 makes the kernel drop further SYNs (tcp_conn_request(), net/ipv4/
        tcp_input.c). So no connections pile up in the accept queue.
        """
        self._shut = True
        self.board.common[cell.HALT] = 1
        for worker in range(self.count if self._reuse else 1):
            self.crew.tell(worker, b"H")


def usual_share(room: int) -> int:
    """Return the mean load of a worker whose load stays within ``room`` at :data:`SIGMAS`."""
    return max(1, math.floor((math.sqrt(room + SIGMAS**2 / 4) - SIGMAS / 2) ** 2))


def listener(endpoint: Tuple[str, int], backlog: int, reuse: bool) -> socket.socket:
    """Return a listening socket. :raises CannotListen: naming address and port."""
    address, port = endpoint
    made = socket.socket(control.family_of(address), socket.SOCK_STREAM)
    try:
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Without SO_REUSEADDR, a TIME_WAIT of an earlier run would block the port (socket(7)).
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
