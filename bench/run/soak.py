"""A long hold: connections are closed and reopened, with echo rounds and a watch on the agents'
memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.errors import LabError
from bench.hosts.agent import Agent
from bench.hosts.session import Session
from bench.results import words
from bench.results.format import AgentsMemory, Churn, EchoRound, MemoryPoint
from bench.run import rounds
from bench.run.curve import Recorder, latency, merge
from bench.scenario import Scenario
from bench.units import plural

STRETCH_SECONDS = 30.0
"""Time between two looks at the agents' memory, unless rounds set another interval."""

LEAST_SECONDS = 1.0
"""Least time of churn or waiting, however little of the hold is left."""

ANSWER_SECONDS = 300.0
"""Time that an answer may take on top of the time of the work itself."""

STILL_SECONDS = 10.0
"""Time without a change in both ends' counts after which they are assumed not to agree."""

SETTLE_SECONDS = 60.0
"""Time limit for both ends to agree, even while their counts still change."""

POLL_SECONDS = 0.05
"""Time between two requests for the agents' counts."""


class Soak:
    """One long hold, with the results so far."""

    def __init__(
        self,
        session: Session,
        scenario: Scenario,
        clients: Sequence[Agent],
        servers: Sequence[Agent],
        recorder: Recorder,
        short: Callable[[], bool],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare a hold.

        :param short: whether a host is short of memory, which ends it early
        :param check: called about once a second of churn; what it raises ends the hold
        """
        self.rounds: list[EchoRound] = []
        self.churn: Churn | None = None
        self.memory = AgentsMemory()
        self.lost = 0
        self._session, self._scenario, self._recorder = session, scenario, recorder
        self._clients, self._servers, self._short = clients, servers, short
        self._check = check
        self._histogram: dict[int, int] = {}
        self._asking = rounds.Asking(session, scenario, clients, servers, recorder)

    def hold(self, held: Mapping[Agent, int], seconds: float, number: int) -> None:
        """Hold for that long, in stretches of churn; each ends with a round and a look at memory.

        :param held: connections of each client
        :param number: number of the first round
        """
        scenario = self._scenario
        every = scenario.round_every_seconds
        began = time.monotonic()
        ends = began + max(LEAST_SECONDS, seconds)
        if every:
            self._asking.servers_answer(True)
        while (left := ends - time.monotonic()) > 0 and not self._short():
            stretch = max(LEAST_SECONDS, min(left, every or STRETCH_SECONDS))
            if scenario.churn_percent:
                self._churn(held, stretch)
                self._settle()
            else:
                self._session.wait(stretch, self._recorder.sample)
            if every and not self._short():
                total = sum(held.values())
                self.rounds.append(self._asking.round(number, "pipelined", total))
                number += 1
            self._look(time.monotonic() - began)
        if every:
            self._asking.servers_answer(False)

    def _churn(self, held: Mapping[Agent, int], seconds: float) -> None:
        scenario, halted = self._scenario, False

        def watch() -> None:
            nonlocal halted
            self._recorder.sample()
            self._check()
            if self._short() and not halted:
                halted = True
                self._session.tell(asked, "halt")

        asked = [agent for agent in self._clients if held.get(agent)]
        for agent in asked:
            rate = held[agent] * scenario.churn_percent / 100
            agent.tell({"op": "churn", "rate": rate, "seconds": seconds})
        grace = scenario.connect_timeout_ms / 1000 * (scenario.retries + 1) + ANSWER_SECONDS
        came = self._session.gather(asked, "churned", seconds + grace, watch)
        self._add(list(came.values()), seconds)

    def _add(self, came: Sequence[Mapping[str, Any]], seconds: float) -> None:
        done = self.churn or Churn(closed=0, opened=0, lost=0, seconds=0.0)
        errors = dict(done.errors)
        for message in came:
            for name, times in message["errors"].items():
                errors[name] = errors.get(name, 0) + int(times)
        for bucket, times in merge(message["latency"] for message in came).items():
            self._histogram[bucket] = self._histogram.get(bucket, 0) + times
        lost = sum(int(message["lost"]) for message in came)
        self.lost += lost
        self.churn = Churn(
            closed=done.closed + sum(int(message["closed"]) for message in came),
            opened=done.opened + sum(int(message["opened"]) for message in came),
            lost=done.lost + lost,
            seconds=round(done.seconds + seconds, 3),
            errors=dict(sorted(errors.items())),
            latency_us=latency(self._histogram),
        )

    def _settle(self) -> None:
        """Wait until the servers hold what the clients hold, or nothing changes any more.

        :raises LabError: if clients then hold connections that no server has
        """
        before = (-1, -1)
        began = moved = time.monotonic()
        while True:
            held = self._held(self._clients), self._held(self._servers)
            if held[0] == held[1]:
                return
            now = time.monotonic()
            if held != before:
                before, moved = held, now
            if now - moved > STILL_SECONDS or now - began > SETTLE_SECONDS:
                break
            self._session.wait(POLL_SECONDS, self._recorder.sample)
        if held[0] > held[1]:
            raise LabError(
                f"after the churn the clients hold {plural(held[0] - held[1], 'connection')} that "
                "no server has: lost on the way, or leading elsewhere; everything is closed"
            )

    def _held(self, agents: Sequence[Agent]) -> int:
        status = self._session.ask(agents, "status", "status", ANSWER_SECONDS)
        return sum(int(message["held"]) for message in status.values())

    def _look(self, t: float) -> None:
        """Record the agents' current memory."""
        told = self._session.ask(
            [*self._servers, *self._clients],
            "memory",
            "memory",
            ANSWER_SECONDS,
            self._recorder.sample,
        )

        def of(agents: Sequence[Agent]) -> int:
            return sum(int(told[agent]["own_kib"]) for agent in agents)

        point = MemoryPoint(
            t=round(t, 3), server_kib=of(self._servers), client_kib=of(self._clients)
        )
        self.memory = trend([*self.memory.points, point])
        points = self._recorder.points
        available = points[-1].mem_available_kib if points else 0
        self._recorder.note("hold", words.soaked(self.churn, point), available)


def trend(points: Sequence[MemoryPoint]) -> AgentsMemory:
    """Return the points and the slopes of their second half by least squares, in KiB a minute.

    In the first half the memory of the processes still grows to what they need: descriptor tables
    are touched for the first time, and allocators keep the memory that they were given. A leak
    grows in the second half too.
    """
    late = points[len(points) // 2 :]

    def slope(kib: Sequence[int]) -> float | None:
        if len(late) < 3:
            return None
        line = statistics.linear_regression([one.t for one in late], kib[-len(late) :])
        return round(60 * line.slope, 2)

    return AgentsMemory(
        points=list(points),
        server_kib_per_minute=slope([one.server_kib for one in points]),
        client_kib_per_minute=slope([one.client_kib for one in points]),
    )
