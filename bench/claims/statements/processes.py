"""The connections that several server processes hold together, and how they share accepting."""

from __future__ import annotations

from statistics import mean, median
from typing import Annotated, Literal

from pydantic import Field, field_validator

from bench.claims.lab import Lab, NotMeasurable
from bench.claims.model import Claim, Found, Judgement, Parameters
from bench.results.format import Run
from bench.scenario import MOST_CONNECTIONS

Listener = Literal["shared", "reuseport"]
LISTENERS: tuple[Listener, ...] = ("shared", "reuseport")


class ProcessesParameters(Parameters):
    """The cap of a process, and the numbers of processes."""

    nofile: int = Field(ge=256, le=1_000_000)
    """RLIMIT_NOFILE of each (getrlimit(2))."""
    processes: list[Annotated[int, Field(ge=1, le=64)]] = Field(min_length=2, max_length=16)
    """Server processes of each run; the first run has one."""
    acceptors: int = Field(ge=2, le=64)
    """Processes that accept when the two kinds of listener are compared."""
    connections: int = Field(ge=1_000, le=MOST_CONNECTIONS)
    """Connections that they accept."""
    rounds: int = Field(ge=1, le=10)
    """Runs with each kind of listener, in turns."""

    @field_validator("processes")
    @classmethod
    def _grow(cls, value: list[int]) -> list[int]:
        if value != sorted(set(value)):
            raise ValueError(f"got {value}, expected each number to be above the one before")
        return value


class Capped(Found):
    """One number of processes and the connections that they held."""

    processes: int = Field(description="of the server")
    held: int = Field(description="ESTAB connections, by ss on the server")
    refused: int = Field(description="EMFILE, times that accept(2) said it")
    bound_by: str = Field(description="the limit that stopped them, and whose, as diagnosed")


class Shares(Found):
    """How processes shared the accepting, with one kind of listener."""

    rates: list[float] = Field(description="connections a second over the ramp, by round")
    least: int = Field(description="connections of the process with the fewest, over all rounds")
    most: int = Field(description="of the one with the most")
    mean: float = Field(description="of all")


class ProcessesFound(Found):
    """The counts under a cap, and the comparison of the two kinds of listener."""

    nofile: int = Field(description="open files that each process may have")
    capped: list[Capped] = Field(description="runs to the limit")
    shared: Shares = Field(description="one listening socket that all processes accept from")
    reuseport: Shares = Field(description="a listening socket each (SO_REUSEPORT)")
    ratio: float = Field(description="median rate with SO_REUSEPORT / with the shared one")


def measure(lab: Lab, parameters: ProcessesParameters) -> ProcessesFound:
    """Go to the limit with one process, two, four; then accept by both kinds in turns."""
    nofile = parameters.nofile
    hard = lab.hosts[lab.server.name].limits.get("nofile_hard")
    if isinstance(hard, int) and hard < nofile:
        raise NotMeasurable(
            f"{lab.server.name} allows {hard:,} open files, fewer than the cap of {nofile:,}"
        )
    capped = []
    for processes in parameters.processes:
        lab.note(f"{processes} with {nofile:,} open files each")
        done = lab.held(
            connections=nofile * processes * 3 // 2,
            nofile=nofile,
            server_workers=processes,
            expect="limit",
            step=0.5,
            resolution=1.0,
            echo_timeout_ms=1_000,
        )
        capped.append(_capped(processes, done))
    runs: dict[Listener, list[Run]] = {kind: [] for kind in LISTENERS}
    for number in range(parameters.rounds):
        for kind in LISTENERS:
            lab.note(f"{kind} listener, round {number + 1}")
            runs[kind].append(
                lab.held(
                    connections=parameters.connections,
                    server_workers=parameters.acceptors,
                    acceptors=parameters.acceptors,
                    listener=kind,
                )
            )
    shares = {kind: _shares(lab, runs[kind]) for kind in LISTENERS}
    rates = {kind: median(shares[kind].rates) for kind in LISTENERS}
    return ProcessesFound(
        nofile=nofile,
        capped=capped,
        shared=shares["shared"],
        reuseport=shares["reuseport"],
        ratio=round(rates["reuseport"] / rates["shared"], 2),
    )


def _capped(processes: int, done: Run) -> Capped:
    end = done.diagnosis.end if done.diagnosis else ""
    return Capped(
        processes=processes,
        held=done.measured.established.ss,
        refused=done.measured.errors.get("EMFILE", 0),
        bound_by=f"{done.bound_by} {end}".strip(),
    )


def _shares(lab: Lab, runs: list[Run]) -> Shares:
    each = [
        count for done in runs for count in done.hosts[lab.server.name].phases["peak"].held_each
    ]
    return Shares(
        rates=[done.measured.connections_per_second for done in runs],
        least=min(each),
        most=max(each),
        mean=round(mean(each), 1),
    )


def judge(found: ProcessesFound) -> Judgement:
    """Judge it confirmed if n times the processes held n times the connections.

    Rates and balance are reported but not judged: they depend on this machine.
    """
    held = ", ".join(f"{one.held:,} by {one.processes}" for one in found.capped)
    measured = (
        f"nofile {found.nofile:,}: {held}; accepted by a process: shared listener "
        f"{found.shared.least:,} to {found.shared.most:,}, SO_REUSEPORT {found.reuseport.least:,} "
        f"to {found.reuseport.most:,}, {found.ratio:g} times as fast"
    )
    first, *others = found.capped
    stopped = [one for one in found.capped if one.bound_by != "nofile server" or not one.refused]
    if stopped:
        return Judgement(
            "inconclusive",
            measured,
            f"{stopped[0].processes} processes were stopped by {stopped[0].bound_by}",
        )
    if others and all(one.held <= first.held for one in others):
        return Judgement("refuted", measured, "more processes held no more than one")
    if not others or any(
        one.held * first.processes != first.held * one.processes for one in others
    ):
        return Judgement("inconclusive", measured, "the counts are no multiples of the first")
    return Judgement(
        "confirmed",
        measured,
        "open files are limited for each process (EMFILE), so each further one brings its own; the "
        "kernel spreads connections over SO_REUSEPORT sockets by a hash of their four-tuple, while "
        "from a shared one whoever is awake takes them",
    )


CLAIM = Claim(
    id="processes",
    said="Several processes per server raise the limit again.",
    cure="Raise nofile first; use processes for cores, with SO_REUSEPORT where each should get its "
    "share.",
    read="docs/scenarios.md",
    small=ProcessesParameters(
        nofile=1_024, processes=[1, 2, 4], acceptors=4, connections=10_000, rounds=2
    ),
    full=ProcessesParameters(
        nofile=10_000, processes=[1, 2, 4], acceptors=8, connections=100_000, rounds=3
    ),
    measure=measure,
    judge=judge,
    connections=lambda parameters: max(
        parameters.connections, parameters.nofile * max(parameters.processes)
    ),
)
