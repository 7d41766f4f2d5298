"""One character typed on every connection, and the time for its echo."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from bench.claims.lab import Lab
from bench.claims.model import Claim, Found, Judgement, Parameters
from bench.results.format import EchoRound
from bench.scenario import MOST_CONNECTIONS

SAID_SESSIONS = 10_000
"""The sessions of the statement."""

SAID_SECONDS = 1.0
"""The time that typing a character on each of them is said to take."""


class KeystrokeParameters(Parameters):
    """The numbers of connections that are held, one after the other."""

    sizes: list[Annotated[int, Field(ge=100, le=MOST_CONNECTIONS)]] = Field(
        min_length=1, max_length=16
    )
    sequential: int = Field(ge=1, le=MOST_CONNECTIONS)
    """Connections that are asked one after the other."""


class Size(BaseModel):
    """One byte each way on a number of held connections."""

    model_config = ConfigDict(extra="forbid")

    connections: int
    seconds: float
    """Seconds of the faster of two rounds: the first round warms up caches."""
    p50_us: int
    p99_us: int
    cpu_us: float
    """CPU time of both ends for a message, µs."""
    unanswered: int
    """Wrong or missing answers in all rounds."""


class KeystrokeFound(Found):
    """The rounds over each size."""

    sizes: list[Size] = Field(
        description="by connections held: seconds of a round, p50 and p99 of an echo in µs, CPU of "
        "both ends in µs for a message, wrong or missing answers"
    )
    sequential_asked: int = Field(description="connections that were asked one after the other")
    sequential_seconds: float = Field(description="what that took, seconds")
    sequential_p50_us: int = Field(description="p50 of one echo with nothing else under way, µs")


def measure(lab: Lab, parameters: KeystrokeParameters) -> KeystrokeFound:
    """Hold each size and type a character on every connection, twice; then on one by one."""
    sizes: list[Size] = []
    alone: EchoRound | None = None
    for size in parameters.sizes:
        done = lab.held(
            connections=size,
            rounds=2,
            sequential_sample=0 if alone else min(size, parameters.sequential),
        )
        told = [one for one in done.measured.rounds if one.mode == "pipelined"]
        alone = alone or next(one for one in done.measured.rounds if one.mode == "sequential")
        best = min(told, key=lambda one: one.seconds)
        cpu = best.client_cpu_seconds + best.server_cpu_seconds
        sizes.append(
            Size(
                connections=best.asked,
                seconds=round(best.seconds, 3),
                p50_us=best.latency_us.p50,
                p99_us=best.latency_us.p99,
                cpu_us=round(cpu / max(1, best.asked) * 1e6, 1),
                unanswered=sum(one.wrong + one.silent for one in told),
            )
        )
    assert alone is not None
    return KeystrokeFound(
        sizes=sizes,
        sequential_asked=alone.asked,
        sequential_seconds=round(alone.seconds, 3),
        sequential_p50_us=alone.latency_us.p50,
    )


def judge(found: KeystrokeFound) -> Judgement:
    """Judge it by the time that 10,000 sessions take, all at once and one by one."""
    measured = "; ".join(
        f"{one.connections:,} held: {one.seconds:.2f} s, p99 {one.p99_us / 1000:.1f} ms, "
        f"{one.cpu_us:.0f} µs of CPU each"
        for one in found.sizes
    )
    one_by_one = found.sequential_seconds / max(1, found.sequential_asked)
    measured += (
        f"; one after the other {found.sequential_seconds:.2f} s for {found.sequential_asked:,}"
    )
    if any(one.unanswered for one in found.sizes) or not found.sizes:
        return Judgement("inconclusive", measured, "not every character came back")
    first = found.sizes[0]
    together = first.seconds / first.connections * SAID_SESSIONS
    alone = one_by_one * SAID_SESSIONS
    each = f"{together:.2f} s for 10,000 sessions at once, {alone:.2f} s one after the other"
    if together >= SAID_SECONDS:
        return Judgement("confirmed", measured, f"a character on each session costs {each}")
    if alone >= SAID_SECONDS:
        return Judgement(
            "depends", measured, f"it is the waiting for each answer that costs: {each}"
        )
    return Judgement(
        "refuted",
        measured,
        f"a character costs two short system calls at either end and a packet each way: {each}",
    )


CLAIM = Claim(
    id="keystroke",
    said="Typing one character on each of 10,000 sessions could cost a second.",
    cure="Wait for all sessions at once (epoll), and do not wait for one answer before the next "
    "question.",
    read="docs/scenarios.md",
    small=KeystrokeParameters(sizes=[2_000, 20_000], sequential=2_000),
    full=KeystrokeParameters(sizes=[10_000, 100_000, 1_000_000], sequential=10_000),
    measure=measure,
    judge=judge,
    connections=lambda parameters: max(parameters.sizes),
)
