"""Findings from a run's evidence, and how direct each finding is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from bench.results.format import HostRecord, Measured, Predicted, Step
from bench.scenario import Scenario

End = Literal["server", "client", "both", "path", ""]
SIDES: tuple[End, End] = ("server", "client")

Errors = Mapping[tuple[str, str], Mapping[str, int]]
"""(``server`` or ``client``, host) to errno name to count."""


class Floor(NamedTuple):
    """The agent that reached its memory floor."""

    host: str
    end: End
    free_kib: int
    """Memory that was really free at that moment."""


class Evidence(Protocol):
    """The evidence that a run has gathered."""

    @property
    def hosts(self) -> Mapping[str, HostRecord]:
        """Host name to its record with phases."""

    @property
    def errors(self) -> Errors:
        """Errnos of the agents' system calls."""

    @property
    def steps(self) -> Sequence[Step]:
        """Steps of a ramp that looked for its limit."""

    @property
    def floor(self) -> Floor | None:
        """The agent that reached its memory floor first; None if none did."""

    @property
    def predicted(self) -> Predicted | None:
        """The model's prediction."""

    @property
    def stopped_by(self) -> str:
        """Why the ramp ended: complete, lost, limit, memory or timeout."""


FLOOR, ANSWER, SAID, COUNTED, VAGUE = range(5)
"""How direct a finding is: the floor that ended the ramp; an errno that only one limit causes; a
kernel message or a table that is full; a counter that suggests a limit; a trace that shows only
that something failed."""

TELLING_PART = 0.01
"""Part of the missing connections. An errno that several limits cause and that occurred less often
than this has not stopped the run."""


@dataclass(frozen=True)
class Finding:
    """A finding of one source."""

    rank: int
    bound_by: str
    evidence: str
    cure: str
    end: End = ""
    host: str = ""


def at_the_end(found: Evidence) -> Errors:
    """Return errors by side and host; for a ramp in steps, only those of its last step too.

    A later step got past the errors of an earlier step.
    """
    if not found.steps:
        return found.errors
    last = found.steps[-1].errors
    return {
        end: {name: count for name, count in of.items() if name in last}
        for end, of in found.errors.items()
    }


def too_few(count: int, scenario: Scenario, measured: Measured, found: Evidence) -> bool:
    """Return whether an errno was too rare to have stopped the run.

    In a ramp in steps the last step decides, otherwise the whole ramp.
    """
    counts = measured.established
    missing = scenario.connections - min(counts.clients, counts.servers, counts.ss)
    return not found.steps and count < TELLING_PART * missing


def hosts_with(errors: Errors, side: str, name: str) -> Iterator[tuple[str, int]]:
    """Yield the hosts whose agent of that side got an errno, with the count, highest first."""
    met = [(of[name], host) for (end, host), of in errors.items() if end == side and of.get(name)]
    for count, host in sorted(met, key=lambda one: (-one[0], one[1])):
        yield host, count


def grown(hosts: Mapping[str, HostRecord], group: str, counter: str) -> int:
    """Return the growth of a counter from ``before`` to the last phase, summed over a group."""
    total = 0
    for host in hosts.values():
        if group in host.groups and "before" in host.phases:
            last = host.phases.get("peak") or host.phases.get("after") or host.phases["before"]
            total += max(
                0, last.nstat.get(counter, 0) - host.phases["before"].nstat.get(counter, 0)
            )
    return total
