"""The curve of a run: from the ticks of all agents, one curve point a second and the progress."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from bench import wire
from bench.results.format import CurvePoint, Latency, Side

Message = Mapping[str, Any]


class Samples(Protocol):
    """The file of all ticks, one JSON line each."""

    def write(self, text: str, /) -> object:
        """Add lines. :raises LabError: if they could not be kept."""


SPAN_SECONDS = 0.5
"""Least time span of a point's rate and p99."""

REACTION_SECONDS = 2.0
"""Time from a look at the memory until the ramp stops: one second to the next tick, and another
until the controller has read it and the clients have stopped."""


@dataclass(frozen=True)
class Progress:
    """The state of a run at one moment."""

    phase: str
    held: int
    target: int
    rate: float
    """Connections a second, over the last second."""
    p99_us: int
    mem_available_kib: int
    seconds_left: float | None
    """Time to the target at the current rate, or to the end of the hold; None if unknown."""
    note: str = ""
    """Text to show instead of the figures."""


def added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sums of several agents' counts, by name."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))


def merge(histograms: Iterable[Mapping[str, int]]) -> dict[int, int]:
    """Return the latency histograms of several agents as one."""
    total: dict[int, int] = {}
    for histogram in histograms:
        for bucket, count in histogram.items():
            total[int(bucket)] = total.get(int(bucket), 0) + count
    return total


def latency(histogram: Mapping[int, int]) -> Latency:
    """Return the percentiles of a histogram, in µs."""
    counts = dict(histogram)
    return Latency(
        p50=wire.percentile(counts, 0.5),
        p90=wire.percentile(counts, 0.9),
        p99=wire.percentile(counts, 0.99),
        p999=wire.percentile(counts, 0.999),
        max=wire.percentile(counts, 1.0),
    )


class _Mark(NamedTuple):
    """The clients' state at a curve point."""

    t: float
    held: int
    histogram: Mapping[int, int]


_START = _Mark(0.0, 0, {})


class Descent:
    """The fall of the hosts' free memory during the ramp, to predict when it reaches the floor.

    :param floor_kib: memory that the ramp must leave, in KiB
    """

    def __init__(self, floor_kib: int) -> None:
        self._floor = floor_kib
        self._seen: dict[tuple[str, Side], deque[tuple[float, int]]] = {}

    def tick(self, agent: tuple[str, Side], seconds: float, free_kib: int) -> None:
        """Record one look: host and side, the agent's own clock, free or reclaimable memory."""
        seen = self._seen.setdefault(agent, deque(maxlen=4))
        if not seen or seconds - seen[-1][0] >= SPAN_SECONDS:
            seen.append((seconds, free_kib))

    def near(self) -> tuple[str, Side, int] | None:
        """Return the agent that would reach the floor within :data:`REACTION_SECONDS` at its
        steepest recent pace.

        :return: host, side, and its last free memory in KiB; None if no agent would
        """
        for (host, side), seen in self._seen.items():
            free = seen[-1][1]
            if free - self._floor <= REACTION_SECONDS * _steepest(seen):
                return host, side, free
        return None


def _steepest(seen: Iterable[tuple[float, int]]) -> float:
    """Return the fastest fall between two looks, in KiB a second; 0 if memory only grew."""
    paces = ((before - now) / (late - early) for (early, before), (late, now) in pairwise(seen))
    return max(0.0, max(paces, default=0.0))


class Recorder:
    """The recorder of a run: it keeps the newest tick of every agent and samples once a second.

    :param samples: the file of all ticks
    :param report: called with the state of the run at each curve point
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
        """Begin a new phase; ``seconds`` is its duration, if that is known."""
        self.phase = phase
        self._phase_ends = None if seconds is None else self._clock() + seconds

    def note(self, phase: str, text: str, mem_available_kib: int) -> None:
        """Report a text once, instead of figures."""
        self._report(Progress(phase, 0, self.target, 0.0, 0, mem_available_kib, None, text))

    def restart(self) -> None:
        """Begin the ramp: time 0 of the curve."""
        self._started = self._clock()
        self.points.clear()
        self._marks.clear()

    def tick(self, host: str, role: str, message: Message) -> None:
        """Record one tick."""
        self._newest[host, role] = message
        line = {"host": host, "role": role, "at": round(self._clock() - self._started, 3)}
        self._samples.write(json.dumps({**line, **message}) + "\n")

    def of(self, role: str) -> list[Message]:
        """Return the newest ticks of one role."""
        return [tick for (_, side), tick in self._newest.items() if side == role]

    def sample(self, *, force: bool = False) -> None:
        """Add a curve point if a second has passed since the last point, or now with ``force``.

        Rate and p99 cover the time since the last point that is :data:`SPAN_SECONDS` old: over a
        few milliseconds they would mean nothing.
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
