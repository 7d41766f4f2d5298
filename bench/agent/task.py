"""The agent's task while it lasts: listen to the workers, watch the memory, send ticks."""

from __future__ import annotations

import select
import time
from typing import Any, Callable, Dict, Iterable, List, Optional, Union

from bench.agent import board as cell
from bench.agent.client import Client
from bench.agent.memory import Gauge
from bench.agent.rounds import Round
from bench.agent.server import Server
from bench.agent.workers import PASS

TICK = 1.0
"""Seconds between two ticks."""

STEEPEST_KIB = 2 << 20
"""Memory that a ramp may take in a second, KiB: 100k connections a second take 750 MB."""

WATCH = 0.02, TICK
"""Least and most seconds between two looks at the memory. The next look comes when the steepest
ramp could have used half of what is left above the floor. So a floor is overshot by at most the
memory of the shortest interval, and looks (some 100 µs each) are rare while memory is plentiful."""

PATIENCE_MS = 5_000
"""Default time for answers on held connections, ms, if the controller names no other."""


class Fault(Exception):
    """A failure that the controller did not cause."""


class Misuse(Exception):
    """A command that cannot be carried out; ``kind`` is input or refused."""

    def __init__(self, message: str, kind: str = "input") -> None:
        super().__init__(message)
        self.kind = kind


def whole(command: Dict[str, Any], key: str, default: int, least: int = 0) -> int:
    """Return a number of a command. :raises Misuse: if it is not a whole number from ``least``."""
    value = command.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise Misuse(f"{key}: {value!r} is not a whole number from {least}")
    return value


Say = Callable[[Any], None]
Aside = Callable[[Callable[[], Any], Callable[[Any], None]], Any]


class Task:
    """The agent's one task: a server or a client, and the round that its workers carry out."""

    def __init__(self, say: Say, clock: Callable[[], float]) -> None:
        """Start without a role.

        :param say: sends an event
        :param clock: returns the seconds since the agent began
        """
        self.role: Optional[Union[Server, Client]] = None
        self.round: Optional[Round] = None
        self.under_way = ""
        """The command whose round is under way."""
        self.reason: Optional[str] = None
        """Why the ramp ended early, None if it did not."""
        self._say, self._clock = say, clock
        self._gauge = Gauge()
        self._tick_at = self._watch_at = 0.0
        self._low = False

    # The main loop calls these.

    def fds(self) -> List[int]:
        """Return the descriptors to wait for."""
        return [self.role.crew.bell] if self.role else []

    def due(self) -> Optional[float]:
        """Return when the next turn is due at the latest, monotonic seconds."""
        if not self.role:
            return None
        return min(self._tick_at, self._watch_at)

    def turn(self) -> None:
        """Read the workers' messages, look at the memory, send a tick if it is due."""
        role = self.role
        if not role:
            return
        for worker, what in role.crew.heard():
            if what == PASS and isinstance(role, Server):
                role.passed(worker)
            elif self.round:
                self.round.rung(worker, what)
        self._bury()
        now = time.monotonic()
        if now >= self._watch_at:
            self._watch_at = now + self._check_memory()
        if now >= self._tick_at:
            self._tick_at = max(self._tick_at + TICK, now)
            self._say(self._tick())
            if isinstance(role, Server):
                role.hand_out()

    def _bury(self) -> None:
        role = self.role
        assert role
        for death in role.crew.deaths():
            self._say({"event": "error", "kind": "fault", "message": str(death)})
            role.lost(death.worker)
            if self.round:
                self.round.lost(death.worker)

    def _check_memory(self) -> float:
        """Stop if memory is below the floor; return the seconds until the next look."""
        role = self.role
        assert role
        floor = role.spec["memory_floor_kib"]
        if self._low or not floor or (isinstance(role, Client) and self.under_way != "ramp"):
            return WATCH[1]
        free = self._gauge.read().free
        if free >= floor:
            return min(WATCH[1], max(WATCH[0], (free - floor) / STEEPEST_KIB / 2))
        self._low = True
        role.board.common[cell.HALT] = 1
        if isinstance(role, Server):
            role.shut()
        elif self.reason is None:
            self.reason = "memory"
        self._say({"event": "floor", "mem_free_kib": free, "floor_kib": floor})
        self._tick_at = 0.0
        return WATCH[1]

    def _tick(self) -> Dict[str, Any]:
        role = self.role
        assert role
        board, memory = role.board, self._gauge.read()
        return {
            "event": "tick",
            "t": round(self._clock(), 3),
            "held": board.total(cell.HELD),
            "opened": board.total(cell.OPENED),
            "closed": board.total(cell.CLOSED),
            "lost": board.total(cell.LOST),
            "retried": board.total(cell.RETRIED),
            "in_flight": board.total(cell.IN_FLIGHT),
            "errors": board.errors(),
            "latency": board.latency() if isinstance(role, Client) else {},
            "mem_available_kib": memory.available,
            "mem_free_kib": memory.free,
            "slab_kib": memory.slab,
        }

    def begin(self, role: Union[Server, Client]) -> None:
        """Take a role; the first turn is due at once."""
        self.role = role
        self._tick_at = 0.0
        self._watch_at = 0.0

    def must(self) -> Union[Server, Client]:
        """Return the role, which there has to be."""
        assert self.role
        return self.role

    def client(self, op: str) -> Client:
        """Return the client. :raises Misuse: naming ``op`` if this agent is a server."""
        if not isinstance(self.role, Client):
            raise Misuse(f"{op}: this agent is a server")
        return self.role

    def server(self, op: str) -> Server:
        """Return the server. :raises Misuse: naming ``op`` if this agent is a client."""
        if not isinstance(self.role, Server):
            raise Misuse(f"{op}: this agent is a client")
        return self.role

    def ramp_begins(self) -> None:
        """Look at the memory before the first connection: below the floor, none is opened."""
        self.reason, self._low = None, False
        self._watch_at = 0.0
        self.under_way = "ramp"
        self._check_memory()

    def go(
        self,
        name: str,
        order: bytes,
        width: int,
        answer: Callable[[], Any],
        only: Optional[Iterable[int]] = None,
    ) -> None:
        """Send an order to the crew, or to some of it; send ``answer()`` when all are done."""
        role = self.must()

        def then() -> None:
            self.round, self.under_way = None, ""
            self._say(self._tick())  # so that no counters are older than the answer
            self._say(answer())

        self.under_way = name
        self.round = Round(role.crew, role.board.common, order, width, then, only)
        self.round.begin()

    def end(self, deadline: float) -> None:
        """Close everything by the deadline (monotonic seconds), then kill workers that are left."""
        role = self.role
        if not role:
            return
        role.board.common[cell.HALT] = role.board.common[cell.OVER] = 1
        if role.board.total(cell.HELD) or role.board.total(cell.IN_FLIGHT):
            for worker in set(role.crew.pids.values()):
                role.crew.tell(worker, b"S")
        else:
            role.crew.kill()  # nothing to reset: do not wake a hundred workers for it
        while role.crew.pids and time.monotonic() < deadline:
            select.select([], [], [], 0.01)
            role.crew.deaths()
            role.crew.heard()
        role.crew.kill()
