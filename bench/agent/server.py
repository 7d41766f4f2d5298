"""The server's side of an agent: listeners, workers, and whose turn it is to accept."""

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
"""Headroom of SO_REUSEPORT workers in standard deviations: the kernel spreads by hash, so a
worker's share is binomial, and at 5 sigma one run in a million overfills one."""


class CannotListen(OSError):
    """An endpoint that cannot be bound; the text names address and port."""


class Server:
    """Everything that ``serve`` started."""

    def __init__(self, spec: wire.ServerSpec) -> None:
        self.spec = spec
        self._reuse = spec["listener"] == "reuseport"
        files, limit = workers.open_files(spec["nofile"]), spec["limit"]
        self.room = workers.capacity(files, extra=len(spec["endpoints"]))
        # Beyond the room that is planned for, accept(2) itself says when a worker is full.
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
        """Let connections in: until now the data ports answered the handshake alone.

        :raises OSError: if the doorkeeper does not let go of them.
        """
        self._doorkeeper.release()
        if self._reuse:  # a queue that no worker drains would stay
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
        """A worker is full and has laid its baton down."""
        self._accepting[worker] = False
        self.hand_out()

    def lost(self, worker: int) -> None:
        """A worker died."""
        self._accepting[worker] = False
        self._dead.add(worker)
        row = self.board.row(worker)
        row[cell.HELD], row[cell.FULL] = 0, 1
        self.hand_out()

    def hand_out(self) -> None:
        """Give batons that lie about to workers with room.

        Where none has room any more, those that accept(2) lets go on do so, and where it lets none,
        somebody keeps asking: a connection that is closed makes room again.
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
        """Memory is at its floor: let nobody in any more.

        A backlog of 0 makes the kernel drop further SYNs (tcp_conn_request(), net/ipv4/
        tcp_input.c), so no queued connection can grow behind the acceptors' back.
        """
        self._shut = True
        self.board.common[cell.HALT] = 1
        for worker in range(self.count if self._reuse else 1):
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
