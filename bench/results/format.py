"""The results format: the data of one run.

``run.json`` is a :class:`Run`; :mod:`bench.results.store` keeps it. Within ``schema: 1``, fields
are only ever added.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1
PHASES = ("before", "peak", "hold_end", "after")

Verdict = Literal["pass", "fail", "aborted"]
Side = Literal["server", "client"]


class Model(BaseModel):
    """Base of every part of the format: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class Requested(Model):
    """The scenario's target."""

    connections: int


class Established(Model):
    """Three independent counts of the same connections."""

    clients: int = Field(description="held by the client agents, by their own count")
    servers: int = Field(description="held by the server agents, by their own count")
    ss: int = Field(description="sockets in ESTAB on the servers' endpoints, by ss")


class Latency(Model):
    """Percentiles of a latency, in µs, as upper edges of 1/16-wide buckets."""

    p50: int = 0
    p90: int = 0
    p99: int = 0
    p999: int = 0
    max: int = 0


class KernelBytes(Model):
    """Slab growth from ``before`` to ``peak`` per connection, in bytes.

    If the hosts share one kernel, ``both_ends`` is set instead of ``server`` and ``client``: the
    figure then covers both sockets of a connection.
    """

    server: float | None = None
    client: float | None = None
    both_ends: float | None = None
    by_cache: dict[str, float] = Field(
        default_factory=dict,
        description="bytes per connection by slab cache; the servers' if each host has its kernel",
    )
    observer_bytes: float = Field(
        0.0, description="bytes per connection in observers' caches, not counted in the figures"
    )
    sockets: float | None = Field(
        None,
        description="TCP socket objects that the kernel gained per connection: 2 on a shared "
        "kernel, 1 on a server's own kernel; otherwise another program opened or closed sockets",
    )


class UserlandBytes(Model):
    """Growth of the agents' PSS per connection from ``before`` to ``peak``, in bytes."""

    server: float | None = None
    client: float | None = None


class Workers(Model):
    """Worker processes by side, and the cost of an idle worker."""

    server: int = 0
    client: int = 0
    pss_kib_each: float = Field(0.0, description="PSS per process before the first connection")


class Liveness(Model):
    """Echoes over held connections, which both sides check."""

    mode: Literal["none", "sample", "all"]
    asked: int = 0
    answered: int = 0
    wrong: int = 0
    unanswered: dict[str, int] = Field(
        default_factory=dict, description="by client, echoes without a correct answer"
    )


class EchoRound(Model):
    """One byte on each of many held connections, one byte back, every answer checked."""

    mode: Literal["pipelined", "sequential"] = Field(
        description="pipelined: many messages under way at a time, over all connections; "
        "sequential: each message after the answer to the one before, over a sample"
    )
    asked: int = Field(description="connections, without those silent in an earlier round")
    answered: int = Field(description="answers with the byte that only this run's servers know")
    wrong: int = Field(description="answers with anything else")
    silent: int = Field(description="connections without an answer in round_timeout_ms, or closed")
    seconds: float = Field(description="time of the slowest client; sequential: of all clients")
    latency_us: Latency = Field(description="from before the write until the answer is read")
    client_cpu_seconds: float = Field(
        description="user and system time of the client agents in the round"
    )
    server_cpu_seconds: float = Field(
        description="user and system time of the server agents in the round"
    )


class Churn(Model):
    """Connections that clients closed by RST and reopened while all others were held."""

    closed: int
    opened: int = Field(description="connections reopened on the same four-tuples; closed - lost")
    lost: int = Field(description="not reopened after the last retry; included in measured.lost")
    seconds: float = Field(description="duration, without the echo rounds in between")
    errors: dict[str, int] = Field(
        default_factory=dict, description="errno name to count, including those before a retry"
    )
    latency_us: Latency = Field(
        default_factory=Latency,
        description="of the new connections, from connect() to established",
    )
    held: Established | None = Field(None, description="the three counts at the end of the hold")


class MemoryPoint(Model):
    """Memory of all agents of a side and their workers: PSS without file pages."""

    t: float = Field(description="seconds into the hold, after its counts and first echoes")
    server_kib: int
    client_kib: int


class AgentsMemory(Model):
    """The agents' memory during the hold, and its trend."""

    points: list[MemoryPoint] = Field(default_factory=list)
    server_kib_per_minute: float | None = Field(
        None,
        description="slope of the points' second half by least squares; null if it has fewer than "
        "three points",
    )
    client_kib_per_minute: float | None = None


class Step(Model):
    """One step of a run that looks for its limit."""

    goal: int = Field(description="connections tried by the step's end, since the ramp began")
    held: int = Field(description="held by the servers once settled: alive on both ends")
    lost: int = Field(description="connections tried in this step and not held after it")
    seconds: float
    errors: dict[str, int] = Field(
        default_factory=dict, description="errno name to count in this step, both sides"
    )


class Measured(Model):
    """The measured values of a run."""

    established: Established
    ramp_seconds: float
    connections_per_second: float
    lost: int = Field(
        description="given up after the last retry, or found dead while held; only the latter in "
        "a run that looks for its limit"
    )
    lost_in_hold: int = Field(0, description="those of lost that were lost while they were held")
    held_end: Established | None = Field(
        None,
        description="the three counts at the end of the hold; null if the run ended earlier",
    )
    retried: int = 0
    errors: dict[str, int] = Field(default_factory=dict, description="errno name to count")
    connect_latency_us: Latency = Field(description="from connect() to established")
    kernel_bytes_per_connection: KernelBytes
    userland_bytes_per_connection: UserlandBytes
    workers: Workers = Field(default_factory=Workers)
    liveness: Liveness
    rounds: list[EchoRound] = Field(
        default_factory=list, description="echo rounds during the hold, in order"
    )
    churn: Churn | None = Field(None, description="null if the scenario asks for none")
    agents_memory: AgentsMemory | None = Field(
        None, description="null without churn and without rounds throughout the hold"
    )
    drain_seconds: float | None = None
    left_after: int | None = Field(
        None,
        description="sockets on the servers' endpoints after the drain, in any state, without "
        "those from before the ramp; null if they were not counted",
    )
    resets_lost: int | None = Field(
        None,
        description="connections whose RST was lost, so that the servers closed them",
    )
    steps: list[Step] = Field(
        default_factory=list, description="steps of a run that looks for its limit, in order"
    )


class Forecast(Model):
    """Memory of the server that will have the least left, before and after the ramp, in KiB.

    The figures are those of the server's kernel: if the hosts share one kernel, both ends count.
    """

    host: str
    connections: int = Field(description="connections that the kernel's servers will hold")
    mem_free_kib: int = Field(description="MemFree before the ramp")
    mem_available_kib: int = Field(description="MemAvailable before the ramp")
    slab_kib: int = Field(description="slab that the connections will take")
    descriptors_kib: int = Field(description="descriptor tables for the connections")
    agents_kib: int = Field(description="agents' own memory for the connections")
    mem_free_expected_kib: int = Field(
        description="MemFree with all connections held; negative: the amount that does not fit"
    )


class Bound(Model):
    """One limit and the connections that it allows: (limit - used) / per connection."""

    name: str
    end: Literal["path", "server", "client", "both"] = Field(
        description="one end, both ends on one kernel, or the path between them"
    )
    host: str = Field(description="the host that binds first among the hosts with this limit")
    max_connections: int
    limit: int = Field(description="as found, in unit")
    used: int = Field(description="in use before the run, or not available for connections")
    per_connection: float = Field(description="amount that one connection of the run takes")
    unit: str


class Predicted(Model):
    """The capacity model's prediction for these hosts."""

    max_connections: int
    bound_by: str
    kernel_bytes_per_connection: float
    limits: dict[str, int] = Field(
        default_factory=dict, description="each limit's own maximum, by name"
    )
    bounds: list[Bound] = Field(
        default_factory=list, description="the limits by end, each with the figures behind it"
    )
    notes: list[str] = Field(
        default_factory=list, description="figures that were not known, and their replacements"
    )
    forecast: Forecast | None = Field(
        None, description="memory that the servers will have left, if they reported it"
    )


class CurvePoint(Model):
    """One second of the run: sums over the hosts; memory of the server with the least left."""

    t: float
    held: int
    rate: float
    p99_us: int
    mem_available_kib: int
    slab_kib: int


class Phase(Model):
    """Parsed evidence of one host in one phase."""

    taken: datetime
    held: int
    held_each: list[int] = Field(
        default_factory=list, description="connections by worker process of this host's agent"
    )
    established: int | None = None
    meminfo_kib: dict[str, int] = Field(default_factory=dict)
    slab_bytes: dict[str, int] = Field(
        default_factory=dict, description="slab cache to bytes of the slabs it occupies"
    )
    slab_objects: dict[str, int] = Field(default_factory=dict)
    slab_shared: dict[str, str] = Field(
        default_factory=dict,
        description="slab cache to the sockets' caches that the kernel merged into it",
    )
    cgroups: dict[str, dict[str, int]] = Field(
        default_factory=dict,
        description="the agent's cgroups, innermost first: limits, use and events",
    )
    conntrack: dict[str, int] = Field(
        default_factory=dict, description="counters of connection tracking, if it is loaded"
    )
    kernel_log: list[str] = Field(
        default_factory=list, description="kernel messages about a limit, as printed"
    )
    sockstat: dict[str, dict[str, int]] = Field(default_factory=dict)
    ss_summary: dict[str, int] = Field(default_factory=dict)
    nstat: dict[str, int] = Field(default_factory=dict, description="counters that are not 0")
    limits: dict[str, int | str] = Field(
        default_factory=dict, description="the host's limits at that time, as the agent reads them"
    )
    pss_kib: int = 0
    workers: int = 0
    missing: dict[str, str] = Field(
        default_factory=dict, description="source that could not be read, and the reason"
    )


class Setting(Model):
    """The value that a role found, and the value that it set."""

    found: str
    set: str
    where: str = "host"


class HostRecord(Model):
    """One host: its software, its limits, its tuning, its evidence."""

    groups: list[str]
    kernel: str
    python: str
    cpu: int
    mem_total_kib: int
    limits: dict[str, int | str | bool] = Field(default_factory=dict)
    sysctl: dict[str, str] = Field(default_factory=dict)
    addresses: list[str] = Field(default_factory=list)
    tuning: dict[str, dict[str, Setting]] = Field(
        default_factory=dict, description="role to setting to found and set"
    )
    reported: dict[str, str] = Field(
        default_factory=dict, description="settings that the roles could not make, and the reason"
    )
    phases: dict[str, Phase] = Field(default_factory=dict)


class Diagnosis(Model):
    """The limit that bound the run."""

    bound_by: str = Field(description="name of the limit, or none")
    end: Literal["server", "client", "both", "path", ""] = ""
    host: str = ""
    sure: Literal["certain", "likely", "unsure"] = Field(
        description="certain: the kernel reports it; likely: a counter fits; unsure: no evidence"
    )
    evidence: list[str] = Field(default_factory=list, description="quoted evidence of the limit")
    cure: str = Field("", description="the one change that raises the limit")


class Run(Model):
    """One complete run."""

    schema_: Literal[1] = Field(1, alias="schema")
    run_id: str
    scenario: str
    substrate: str
    verdict: Verdict
    reason: str
    started: datetime
    finished: datetime
    config: dict[str, Any]
    requested: Requested
    measured: Measured
    predicted: Predicted
    bound_by: str = Field(description="the limit that stopped the ramp, or none")
    diagnosis: Diagnosis | None = Field(None, description="evidence of the limit, and its cure")
    curve: list[CurvePoint] = Field(default_factory=list)
    hosts: dict[str, HostRecord] = Field(default_factory=dict)
    packages: dict[str, str] = Field(
        default_factory=dict, description="Python packages of the controller, with versions"
    )
    image: dict[str, Any] = Field(
        default_factory=dict, description="manifest of the hosts' image, if the lab built it"
    )

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


def json_schema() -> str:
    """Return the published JSON Schema of ``run.json``."""
    return json.dumps(Run.model_json_schema(by_alias=True), indent=1, sort_keys=True) + "\n"
