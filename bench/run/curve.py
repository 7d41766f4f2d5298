"""The run as it goes: ticks of all agents in, one curve point a second and progress out."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from bench import wire
from bench.results.format import CurvePoint, Latency, Side

Message = Mapping[str, Any]


class Samples(Protocol):
    """Where every tick is written, one JSON line each."""

    def write(self, text: str, /) -> object:
        """Add lines. :raises LabError: if they could not be kept."""


SPAN_SECONDS = 0.5
"""The least time that a point's rate and p99 are taken over."""

REACTION_SECONDS = 2.0
"""From a look at the memory to a ramp that stands: a second to the next tick, and as long again
until the controller has heard it and the clients have stopped."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    phase: str
    held: int
    target: int
    rate: float
    """Connections a second, over the last second."""
    p99_us: int
    mem_available_kib: int
    seconds_left: float | None
    """Until the target at the present rate, or until the end of the hold; None if unknown."""
    note: str = ""
    """What to say instead of the figures."""


def merge(histograms: Iterable[Mapping[str, int]]) -> dict[int, int]:
    """Latency histograms of several agents as one."""
    total: dict[int, int] = {}
    for histogram in histograms:
        for bucket, count in histogram.items():
            total[int(bucket)] = total.get(int(bucket), 0) + count
    return total


def latency(histogram: Mapping[int, int]) -> Latency:
    """The percentiles of a histogram, in µs."""
    counts = dict(histogram)
    return Latency(
        p50=wire.percentile(counts, 0.5),
        p90=wire.percentile(counts, 0.9),
        p99=wire.percentile(counts, 0.99),
        p999=wire.percentile(counts, 0.999),
        max=wire.percentile(counts, 1.0),
    )


class _Mark(NamedTuple):
    """Where the clients stood at a curve point."""

    t: float
    held: int
    histogram: Mapping[int, int]


_START = _Mark(0.0, 0, {})


class Descent:
    """Tells when the memory of a host that is still ramping will soon be at its floor.

    :param floor_kib: what the ramp must leave, KiB
    """

    def __init__(self, floor_kib: int) -> None:
        self._floor = floor_kib
        self._seen: dict[tuple[str, Side], deque[tuple[float, int]]] = {}

    def tick(self, agent: tuple[str, Side], seconds: float, free_kib: int) -> None:
        """Take in one look: host and side, the agent's own clock, what is free or reclaimable."""
        seen = self._seen.setdefault(agent, deque(maxlen=4))
        if not seen or seconds - seen[-1][0] >= SPAN_SECONDS:
            seen.append((seconds, free_kib))

    def near(self) -> tuple[str, Side, int] | None:
        """Who would reach the floor within :data:`REACTION_SECONDS` of its steepest recent pace.

        :return: host, side, and what was free there last, KiB; None if nobody would
        """
        for (host, side), seen in self._seen.items():
            free = seen[-1][1]
            if free - self._floor <= REACTION_SECONDS * _steepest(seen):
                return host, side, free
        return None


def _steepest(seen: Iterable[tuple[float, int]]) -> float:
    """The most that was taken between two looks, KiB a second; 0 if memory only grew."""
    paces = ((before - now) / (late - early) for (early, before), (late, now) in pairwise(seen))
    return max(0.0, max(paces, default=0.0))


class Recorder:
    """Keeps the newest tick of every agent and samples them once a second.

    :param samples: where ticks are kept.
    :param report: called with the state of the run at each curve point.
    """

    def __init__(
        self,
        target: int,
        samples: Samples,
        report: Callable[[Progress], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.target = target
        self.points: list[CurvePoint] = []
        self.phase = "prepare"
        self._samples = samples
        self._report = report
        self._clock = clock
        self._started = clock()
        self._phase_ends: float | None = None
        self._newest: dict[tuple[str, str], Message] = {}
        self._marks: deque[_Mark] = deque(maxlen=4)

    def enter(self, phase: str, seconds: float | None = None) -> None:
        """A new phase begins; ``seconds`` is how long it will take, if that is known."""
        self.phase = phase
        self._phase_ends = None if seconds is None else self._clock() + seconds

    def note(self, phase: str, text: str, mem_available_kib: int) -> None:
        """Say something once, before there is anything to sample."""
        self._report(Progress(phase, 0, self.target, 0.0, 0, mem_available_kib, None, text))

    def restart(self) -> None:
        """The ramp begins: time 0 of the curve."""
        self._started = self._clock()
        self.points.clear()
        self._marks.clear()

    def tick(self, host: str, role: str, message: Message) -> None:
        """Take in one tick."""
        self._newest[host, role] = message
        line = {"host": host, "role": role, "at": round(self._clock() - self._started, 3)}
        self._samples.write(json.dumps({**line, **message}) + "\n")

    def of(self, role: str) -> list[Message]:
        """The newest ticks of one role."""
        return [tick for (_, side), tick in self._newest.items() if side == role]

    def sample(self, *, force: bool = False) -> None:
        """Add a curve point if a second has passed since the last, or now with ``force``.

        Rate and p99 cover the time since the last point that is :data:`SPAN_SECONDS` old: over a
        few milliseconds they would say nothing.
        """
        now = self._clock() - self._started
        if not self._newest or (not force and self.points and now - self.points[-1].t < 1.0):
            return
        clients = self.of("client")
        held = sum(int(tick["held"]) for tick in clients)
        histogram = merge(tick["latency"] for tick in clients)
        base = next((one for one in reversed(self._marks) if now - one.t >= SPAN_SECONDS), _START)
        fresh = {
            bucket: count - base.histogram.get(bucket, 0)
            for bucket, count in histogram.items()
            if count > base.histogram.get(bucket, 0)
        }
        span, gained = now - base.t, held - base.held
        self._marks.append(_Mark(now, held, histogram))
        servers = self.of("server") or clients
        lowest = min(servers, key=lambda tick: int(tick["mem_available_kib"]))
        point = CurvePoint(
            t=round(now, 3),
            held=held,
            rate=round(max(gained, 0) / span, 1) if span > 0 else 0.0,
            p99_us=wire.percentile(fresh, 0.99),
            mem_available_kib=int(lowest["mem_available_kib"]),
            slab_kib=int(lowest["slab_kib"]),
        )
        self.points.append(point)
        self._report(
            Progress(
                self.phase,
                held,
                self.target,
                point.rate,
                point.p99_us,
                point.mem_available_kib,
                self._left(point),
            )
        )

    def _left(self, point: CurvePoint) -> float | None:
        if self._phase_ends is not None:
            return max(0.0, self._phase_ends - self._clock())
        if self.phase == "ramp" and point.rate > 0:
            return (self.target - point.held) / point.rate
        return None
