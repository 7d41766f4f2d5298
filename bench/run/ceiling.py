"""The search for a ceiling: up in steps until a step fails, then in ever smaller steps.

A step succeeds if both ends hold all connections that it tried. A failing step keeps the
connections that it opened if they are alive. Connections that a client sees as established while
they wait in an accept queue that no worker serves are reset.

The ceiling is found when a step fails that tried at most ``resolution`` of the held connections, or
one connection for each client. If more connections are held later than a failing step tried for,
that failure was an accident and not a limit, and the steps become large again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

from bench.hosts.agent import Agent
from bench.hosts.session import Session
from bench.results.format import Step
from bench.run.curve import Recorder, added, merge
from bench.scenario import Scenario

MOST_FAILURES = 16
"""Most failing steps in a row: halving 16 times goes from 65,536 connections down to one."""

LEAST_LOST = 64
"""Least number of lost connections at which a client ends a step. The number is twice the client's
window if that is more: connections under way at the limit may fail without hiding later ones."""

ANSWER_SECONDS = 300.0
"""Time limit for one answer of all agents: a look at a million sockets takes seconds, under
emulation minutes."""

GRACE_SECONDS = 60.0
"""Time that a step may take on top of the time of its tries."""

SETTLE_SECONDS = 60.0
"""Time limit for the servers to hold what their clients hold, while the counts still change."""

STILL_SECONDS = 2.0
"""Time without a change in the servers' counts after which no more of a step will reach them."""

REFUSED_SECONDS = 0.5
"""The same while the servers' system calls fail: an acceptor at a limit tries every 50 ms."""

POLL_SECONDS = 0.05
"""Time between two requests for the servers' counts."""


class Ceiling:
    """One ramp to its limit."""

    def __init__(
        self,
        session: Session,
        scenario: Scenario,
        recorder: Recorder,
        planned: Mapping[Agent, int],
        servers: Sequence[Agent],
        short_of_memory: Callable[[], bool],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare a search.

        :param planned: every client and the connections of its plan
        :param check: called about once a second; what it raises ends the search
        """
        self.steps: list[Step] = []
        self.latency: dict[int, int] = {}
        """Latency of all connects so far: bucket to count."""
        self._session, self._scenario, self._recorder = session, scenario, recorder
        self._planned, self._servers = planned, servers
        self._clients = list(planned)
        self._short_of_memory, self._check = short_of_memory, check
        self._most_lost = max(LEAST_LOST, 2 * scenario.max_in_flight)
        self._tried = dict.fromkeys(planned, 0)
        self._errors: dict[str, int] = {}
        self._server_errors: dict[str, int] = {}
        self._stopped = ""
        self._until = math.inf

    def find(self) -> str:
        """Search for the ceiling; return why the search ended.

        ``limit``: the last step failed, and no smaller step is left to try; ``complete``: all
        connections of the plan are held; ``lost``: all were tried, some failed, and no limit
        showed; ``memory``, ``timeout``: stopped by the floor or by ``ramp_timeout_seconds``.
        """
        scenario, planned = self._scenario, sum(self._planned.values())
        self._until = time.monotonic() + scenario.ramp_timeout_seconds
        full = size = max(1, math.ceil(scenario.step * scenario.connections))
        failures, accident = 0, math.inf
        step = Step(goal=0, held=0, lost=0, seconds=0.0)
        while step.goal < planned:
            asked, before = min(size, planned - step.goal), step
            step = self._step(asked, before)
            self.steps.append(step)
            tried = step.goal - before.goal
            if step.held >= planned:
                return "complete"
            if self._stopped:
                return self._stopped
            if tried and not step.lost:
                if step.held >= accident:
                    size, failures, accident = full, 0, math.inf
                continue
            failures += 1
            accident = min(accident, before.held + tried)
            smallest = max(len(self._clients), int(scenario.resolution * step.held))
            found = asked <= smallest or failures >= MOST_FAILURES
            self._tell(asked, step, "that is the limit" if found else "halving")
            if found:
                return "limit"
            size = max(smallest, min(asked, tried) // 2)
        return "limit" if step.lost else "lost"

    def _step(self, asked: int, before: Step) -> Step:
        """Try that many more connections, and count what both ends hold afterwards."""
        session, scenario = self._session, self._scenario
        began = time.monotonic()
        for client, more in self._split(asked).items():
            upto = self._tried[client] + more
            client.tell({"op": "ramp", "upto": upto, "most_lost": self._most_lost})
        tries = scenario.connect_timeout_ms / 1000 * (scenario.retries + 1)
        patience = scenario.ramp_timeout_seconds + tries + GRACE_SECONDS
        ended = session.gather(self._clients, "ramped", patience, self._watch)
        if any(message["reason"] == "memory" for message in ended.values()):
            self._stopped = "memory"
        self._tried = {client: int(ended[client]["tried"]) for client in self._clients}
        self.latency = merge(message["latency"] for message in ended.values())
        ours = sum(int(message["held"]) for message in ended.values())
        theirs = self._settle(ours)
        if theirs < ours:
            ours -= self._drop_unserved()
            theirs = self._settle(ours)
        goal, held = sum(self._tried.values()), min(ours, theirs)
        return Step(
            goal=goal,
            held=held,
            lost=max(0, goal - before.goal - (held - before.held)),
            seconds=round(time.monotonic() - began, 3),
            errors=self._fresh_errors(
                [*(message["errors"] for message in ended.values()), self._server_errors]
            ),
        )

    def _split(self, asked: int) -> dict[Agent, int]:
        """Split connections exactly among the clients, in proportion to what each has left.

        As long as no connection is lost, that is the proportion of their shares.
        """
        parts: dict[Agent, int] = {}
        left = {client: self._planned[client] - self._tried[client] for client in self._clients}
        total, before = sum(left.values()), 0
        for client, mine in left.items():
            parts[client] = asked * (before + mine) // total - asked * before // total
            before += mine
        return parts

    def _watch(self) -> None:
        self._recorder.sample()
        self._check()
        if self._stopped:
            return
        if self._short_of_memory():
            self._stopped = "memory"
        elif time.monotonic() > self._until:
            self._stopped = "timeout"
        if self._stopped:
            self._session.tell(self._clients, "halt")

    def _settle(self, wanted: int) -> int:
        """Wait until the servers hold that many, or nothing changes; return how many they hold."""
        began = moved = time.monotonic()
        last, refused = -1, self._server_errors
        while True:
            told = self._session.ask(
                self._servers, "status", "status", ANSWER_SECONDS, self._recorder.sample
            ).values()
            held = sum(int(message["held"]) for message in told)
            self._server_errors = added(message["errors"] for message in told)
            now = time.monotonic()
            if held != last:
                last, moved, refused = held, now, self._server_errors
            still = STILL_SECONDS if self._server_errors == refused else REFUSED_SECONDS
            if held == wanted or now - moved > still or now - began > SETTLE_SECONDS:
                return held
            self._session.wait(POLL_SECONDS, self._recorder.sample)

    def _drop_unserved(self) -> int:
        """Reset connections that clients see as established and no server answers on; return how
        many."""
        idle = self._recorder.sample
        self._session.ask(self._servers, "answer", "answering", ANSWER_SECONDS, idle, on=True)
        told = self._session.ask(
            self._clients,
            "echo",
            "echoed",
            ANSWER_SECONDS,
            idle,
            mode="fresh",
            drop=True,
            patience_ms=self._scenario.echo_timeout_ms,
        ).values()
        self._session.ask(self._servers, "answer", "answering", ANSWER_SECONDS, idle, on=False)
        return sum(int(message["dropped"]) for message in told)

    def _fresh_errors(self, totals: Sequence[Mapping[str, int]]) -> dict[str, int]:
        """Return the errors since the last step, both sides together."""
        before, self._errors = self._errors, added(totals)
        grown = {name: count - before.get(name, 0) for name, count in self._errors.items()}
        return {name: count for name, count in sorted(grown.items()) if count > 0}

    def _tell(self, asked: int, step: Step, what_next: str) -> None:
        errors = "".join(f", {name} {count:,}" for name, count in step.errors.items())
        points = self._recorder.points
        available = points[-1].mem_available_kib if points else 0
        said = f"{asked:,} more requested, {step.held:,} held{errors}; {what_next}"
        self._recorder.note("step", said, available)
