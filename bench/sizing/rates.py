"""The rate at which one core opens connections at one end: given, measured by past runs, or built
in."""

from __future__ import annotations

import statistics
from typing import NamedTuple

from bench.results.format import Run
from bench.results.store import Store
from bench.units import plural

RUNS = 5
"""Number of newest runs whose median is used."""

LEAST_CONNECTIONS = 100_000
"""Least connections of a run that counts: a smaller run is over in a second or two, so its start
and end decide its rate."""


class Rate(NamedTuple):
    """A rate and where it comes from."""

    per_core: float
    """Connections a second that one core opens at one end."""
    source: str


BUILT_IN = Rate(
    50_000.0,
    "built in: 20 µs of CPU per connection and end, half of the 40 µs measured for both ends "
    "on one machine of 2 cores with Linux 6.18",
)


def of_runs(store: Store) -> Rate | None:
    """Return the median rate of the newest runs that passed; None if there are none."""
    newest: list[tuple[float, Run]] = []
    for run in store.runs(newest_first=True):
        rate = per_core(run)
        if rate is not None:
            newest.append((rate, run))
        if len(newest) == RUNS:
            break
    if not newest:
        return None
    runs = plural(len(newest), "run")
    middle = statistics.median(rate for rate, _ in newest)
    return Rate(middle, f"measured: median of {runs} that passed, newest {newest[0][1].run_id}")


def per_core(run: Run) -> float | None:
    """Return how many connections a second one core opened at one end; None if the run cannot show
    it.

    These runs do not show what is possible: paced runs, runs that looked for a limit (they have
    failing steps and pauses), and runs on virtual machines, whose processors may be emulated. On
    one kernel (``local``) the same cores worked for both ends. On separate machines the end with
    fewer cores is assumed to have set the pace.
    """
    paced = run.config.get("connect_rate") is not None
    searched = run.config.get("expect") == "limit" or run.measured.steps
    if run.verdict != "pass" or run.substrate == "vm" or paced or searched:
        return None
    if run.measured.established.clients < LEAST_CONNECTIONS:
        return None
    cores = {
        group: [host.cpu for host in run.hosts.values() if group in host.groups]
        for group in ("servers", "clients")
    }
    if not all(cores.values()):
        return None
    pace = run.measured.connections_per_second
    if run.substrate == "local":
        return 2 * pace / max(cores["servers"])
    return pace / min(map(sum, cores.values()))
