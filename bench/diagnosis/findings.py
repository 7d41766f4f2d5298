"""What the sources of a run's evidence show: findings, and how direct each is."""

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
    """The agent that came to its memory floor."""

    host: str
    end: End
    free_kib: int
    """Memory that was really free then."""


class Evidence(Protocol):
    """What a run has gathered."""

    @property
    def hosts(self) -> Mapping[str, HostRecord]:
        """Host name to its record with phases."""

    @property
    def errors(self) -> Errors:
        """What system calls of the agents answered."""

    @property
    def steps(self) -> Sequence[Step]:
        """Of a ramp that looked for its limit."""

    @property
    def floor(self) -> Floor | None:
        """Whose memory fell to the floor first; None if nobody's did."""

    @property
    def predicted(self) -> Predicted | None:
        """What the model expected."""

    @property
    def stopped_by(self) -> str:
        """Why the ramp ended: complete, lost, limit, memory or timeout."""


FLOOR, ANSWER, SAID, COUNTED, VAGUE = range(5)
"""How direct a finding is: the floor that ended the ramp; what a system call answered that only
one limit can make it answer; what the kernel wrote or shows as full; what a counter suggests; what
only says that something failed."""

TELLING_PART = 0.01
"""Of the connections that are missing: an errno that many limits give and that was met less often
than that has not stopped the run."""


@dataclass(frozen=True)
class Finding:
    """What one source shows."""

    rank: int
    bound_by: str
    evidence: str
    cure: str
    end: End = ""
    host: str = ""


def at_the_end(found: Evidence) -> Errors:
    """Errors by side and host; of a ramp in steps, only those that its last step met as well.

    What an earlier step met, a later one got past.
    """
    if not found.steps:
        return found.errors
    last = found.steps[-1].errors
    return {
        end: {name: count for name, count in of.items() if name in last}
        for end, of in found.errors.items()
    }


def too_few(count: int, scenario: Scenario, measured: Measured, found: Evidence) -> bool:
    """Whether an errno was met too rarely to have stopped the run.

    Who looks for a limit is told by the last step; others by the whole ramp.
    """
    counts = measured.established
    missing = scenario.connections - min(counts.clients, counts.servers, counts.ss)
    return not found.steps and count < TELLING_PART * missing


def hosts_with(errors: Errors, side: str, name: str) -> Iterator[tuple[str, int]]:
    """Hosts whose agent of that side met an errno, those that met it most often first."""
    met = [(of[name], host) for (end, host), of in errors.items() if end == side and of.get(name)]
    for count, host in sorted(met, key=lambda one: (-one[0], one[1])):
        yield host, count


def grown(hosts: Mapping[str, HostRecord], group: str, counter: str) -> int:
    """Growth of a counter from ``before`` to the last phase seen, over a group's hosts."""
    total = 0
    for host in hosts.values():
        if group in host.groups and "before" in host.phases:
            last = host.phases.get("peak") or host.phases.get("after") or host.phases["before"]
            total += max(
                0, last.nstat.get(counter, 0) - host.phases["before"].nstat.get(counter, 0)
            )
    return total
