"""The results format: what one run leaves behind, as data.

``run.json`` is a :class:`Run`; :mod:`bench.results.store` keeps it. Fields are only ever added
within ``schema: 1``.
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
    """What the scenario asked for."""

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

    ``both_ends`` is set instead of ``server`` and ``client`` where the hosts share one kernel: the
    figure then covers both sockets of a connection.
    """

    server: float | None = None
    client: float | None = None
    both_ends: float | None = None
    by_cache: dict[str, float] = Field(
        default_factory=dict,
        description="bytes per connection by slab cache; of the servers where kernels are apart",
    )
    observer_bytes: float = Field(
        0.0, description="bytes per connection in caches that observers fill, not in the figures"
    )
    sockets: float | None = Field(
        None,
        description="TCP socket objects that the kernel gained per connection: 2 on a shared "
        "kernel, 1 on one of the servers' own; else something else opened or closed sockets",
    )


class UserlandBytes(Model):
    """Growth of the agents' PSS per connection from ``before`` to ``peak``, in bytes."""

    server: float | None = None
    client: float | None = None


class Workers(Model):
    """Processes of one side and what an idle one costs."""

    server: int = 0
    client: int = 0
    pss_kib_each: float = Field(0.0, description="PSS per process before the first connection")


class Liveness(Model):
    """Echoes over held connections, each side checking the other."""

    mode: Literal["none", "sample", "all"]
    asked: int = 0
    answered: int = 0
    wrong: int = 0
    unanswered: dict[str, int] = Field(
        default_factory=dict, description="by client, echoes that were not answered rightly"
    )


class EchoRound(Model):
    """One byte on each of many held connections, one byte back, every answer checked."""

    mode: Literal["pipelined", "sequential"] = Field(
        description="pipelined: many under way at a time, over all connections; sequential: each "
        "once the one before has answered, over a sample"
    )
    asked: int = Field(description="connections; who was silent in an earlier round is left out")
    answered: int = Field(description="with the byte that only this run's servers can tell")
    wrong: int = Field(description="answered with anything else")
    silent: int = Field(description="no answer in round_timeout_ms, or closed")
    seconds: float = Field(description="of the client that took longest; sequential: of all")
    latency_us: Latency = Field(description="from before the write until the answer is read")
    client_cpu_seconds: float = Field(
        description="user and system time of the client agents in the round"
    )
    server_cpu_seconds: float = Field(description="the same of the server agents")


class Churn(Model):
    """Connections that clients closed by RST and opened again while all others were held."""

    closed: int
    opened: int = Field(description="again, on the same four-tuples; closed - lost")
    lost: int = Field(description="not open again after the last retry; in measured.lost too")
    seconds: float = Field(description="that it lasted, without the echo rounds in between")
    errors: dict[str, int] = Field(
        default_factory=dict, description="errno name to count, those that a retry overcame too"
    )
    latency_us: Latency = Field(
        default_factory=Latency, description="of the new connections, connect() to established"
    )
    held: Established | None = Field(None, description="the three counts at the end of the hold")


class MemoryPoint(Model):
    """Memory of all agents of a side with their workers: PSS without pages of files."""

    t: float = Field(description="seconds of the hold after its counts and first echoes")
    server_kib: int
    client_kib: int


class AgentsMemory(Model):
    """The agents' memory in a hold that was looked at, and where it goes."""

    points: list[MemoryPoint] = Field(default_factory=list)
    server_kib_per_minute: float | None = Field(
        None,
        description="slope of the points' second half by least squares; null with fewer than "
        "three in it",
    )
    client_kib_per_minute: float | None = None


class Step(Model):
    """One step of a run that looks for its limit."""

    goal: int = Field(description="connections tried by its end, since the ramp began")
    held: int = Field(description="by the servers once they had settled: alive on both ends")
    lost: int = Field(description="tried in this step and not held after it")
    seconds: float
    errors: dict[str, int] = Field(
        default_factory=dict, description="errno name to count in this step, both sides"
    )


class Measured(Model):
    """What was reached."""

    established: Established
    ramp_seconds: float
    connections_per_second: float
    lost: int = Field(
        description="given up after the last retry, or found dead while held; of a run that "
        "looks for its limit only the latter"
    )
    lost_in_hold: int = Field(0, description="of those, while they were held")
    held_end: Established | None = Field(
        None, description="the three counts at the end of the hold; null if it was not reached"
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
    churn: Churn | None = Field(None, description="null where the scenario asks for none")
    agents_memory: AgentsMemory | None = Field(
        None, description="null without churn and without rounds throughout the hold"
    )
    drain_seconds: float | None = None
    left_after: int | None = Field(
        None,
        description="sockets on the servers' endpoints, in any state, after the drain, beyond "
        "those of before the ramp; null where they were not counted",
    )
    resets_lost: int | None = Field(
        None,
        description="connections whose RST was lost: closed by the servers",
    )
    steps: list[Step] = Field(
        default_factory=list, description="of a run that looks for its limit, in order"
    )


class Forecast(Model):
    """Memory of the server that will have the least left, before the ramp and after it, in KiB.

    Of the whole kernel that the server runs on: where the hosts share one, both ends count.
    """

    host: str
    connections: int = Field(description="that its servers will hold")
    mem_free_kib: int = Field(description="MemFree before the ramp")
    mem_available_kib: int = Field(description="MemAvailable before the ramp")
    slab_kib: int = Field(description="slab that the connections will take")
    descriptors_kib: int = Field(description="descriptor tables that they will take")
    agents_kib: int = Field(description="agents' own memory for them")
    mem_free_expected_kib: int = Field(
        description="MemFree with all of them held; negative: so much does not fit"
    )


class Bound(Model):
    """One limit and the connections of the run that it allows: (limit - used) / per connection."""

    name: str
    end: Literal["path", "server", "client", "both"] = Field(
        description="whose limit: of one end, of a kernel with both, or of the path between them"
    )
    host: str = Field(description="the host that binds first among those with this limit")
    max_connections: int
    limit: int = Field(description="as found, in unit")
    used: int = Field(description="in use before the run, or not for connections")
    per_connection: float = Field(description="what one connection of the run takes")
    unit: str


class Predicted(Model):
    """What the capacity model expects of these hosts."""

    max_connections: int
    bound_by: str
    kernel_bytes_per_connection: float
    limits: dict[str, int] = Field(
        default_factory=dict, description="each limit's own maximum, by name"
    )
    bounds: list[Bound] = Field(
        default_factory=list, description="the same, each end's with what it comes from"
    )
    notes: list[str] = Field(
        default_factory=list, description="what was not known, and what stood in for it"
    )
    forecast: Forecast | None = Field(
        None, description="what will be left of the servers' memory, where they told it"
    )


class CurvePoint(Model):
    """One second of the run. Sums over hosts; memory of the server with the least left."""

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
        default_factory=dict, description="connection tracking's own counters, where it is loaded"
    )
    kernel_log: list[str] = Field(
        default_factory=list, description="kernel messages that tell of a limit, as printed"
    )
    sockstat: dict[str, dict[str, int]] = Field(default_factory=dict)
    ss_summary: dict[str, int] = Field(default_factory=dict)
    nstat: dict[str, int] = Field(default_factory=dict, description="counters that are not 0")
    limits: dict[str, int | str] = Field(
        default_factory=dict, description="what bounds the host just then, as the agent reads it"
    )
    pss_kib: int = 0
    workers: int = 0
    missing: dict[str, str] = Field(
        default_factory=dict, description="source that could not be read, and why"
    )


class Setting(Model):
    """A value that a role found and what it set."""

    found: str
    set: str
    where: str = "host"


class HostRecord(Model):
    """One host: what it is, its limits, its tuning, its evidence."""

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
        default_factory=dict, description="settings that the roles could not make, and why"
    )
    phases: dict[str, Phase] = Field(default_factory=dict)


class Diagnosis(Model):
    """The limit that bound the run."""

    bound_by: str = Field(description="its name, or none")
    end: Literal["server", "client", "both", "path", ""] = ""
    host: str = ""
    sure: Literal["certain", "likely", "unsure"] = Field(
        description="certain: the kernel said so; likely: a counter fits; unsure: nothing tells"
    )
    evidence: list[str] = Field(default_factory=list, description="what shows it, quoted")
    cure: str = Field("", description="the one change that raises it")


class Run(Model):
    """One run, whole."""

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
    diagnosis: Diagnosis | None = Field(None, description="how that is known, and what raises it")
    curve: list[CurvePoint] = Field(default_factory=list)
    hosts: dict[str, HostRecord] = Field(default_factory=dict)
    packages: dict[str, str] = Field(
        default_factory=dict, description="Python packages of the controller, with versions"
    )
    image: dict[str, Any] = Field(
        default_factory=dict, description="manifest of the hosts' image, where the lab built it"
    )

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


def json_schema() -> str:
    """The published JSON Schema of ``run.json``."""
    return json.dumps(Run.model_json_schema(by_alias=True), indent=1, sort_keys=True) + "\n"
