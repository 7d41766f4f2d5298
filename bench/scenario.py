"""Scenarios: what to open, how fast, how long to hold, how to close. Pydantic checks the YAML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.errors import InputError, brief, refusal

Port = Annotated[int, Field(ge=1, le=65535)]


MOST_CONNECTIONS = 100_000_000
"""Most connections that a scenario or a claim may ask for."""

MOST_RATE = 1_000_000
"""Most connections a second that a scenario may open."""

MOST_ROUNDS = 1_000
"""Most echo rounds of one run."""


class Scenario(BaseModel):
    """One experiment. Every run is bounded in count, rate and time."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str
    title: str
    connections: int = Field(1_000_000, ge=1, le=MOST_CONNECTIONS)
    path: Literal["direct", "routed", "proxied"] = Field(
        "direct", description="hosts between clients and servers: none, a router, or proxies"
    )
    family: Literal["auto", 4, 6] = Field(
        "auto", description="IP version; auto: the version of the first server's first address"
    )
    clients: int | None = Field(None, ge=1, description="client hosts that connect; none: all")
    client_addresses: int | None = Field(
        None, ge=1, description="number of each client's first addresses to use; none: all"
    )
    server_addresses: int | None = Field(
        None, ge=1, description="number of each server's first addresses to use; none: all"
    )
    proxies: int | None = Field(None, ge=1, description="number of proxies to use; none: all")
    server_ports: list[Port] = Field(default=[5000], min_length=1, max_length=1024)
    control_port: Port = 4999
    first_client_port: Port = 1024
    last_client_port: Port = 65535
    connect_rate: float | None = Field(
        None, gt=0, le=MOST_RATE, description="connections a second over all clients; none: no cap"
    )
    max_in_flight: int = Field(
        128, ge=1, le=65_536, description="connects under way at a time, per client host"
    )
    active_workers: int = Field(
        1, ge=1, le=1024, description="workers that connect at a time, per client host"
    )
    connect_timeout_ms: int = Field(5_000, ge=10, le=120_000)
    retries: int = Field(5, ge=0, le=100, description="tries after the first, per connection")
    backoff_ms: int = Field(50, ge=1, le=60_000, description="wait before the first retry; doubles")
    ramp_timeout_seconds: float = Field(600, gt=0, le=7_200)
    silence_seconds: float = Field(
        20,
        ge=6,
        le=600,
        description="the controller gives up a host that is silent for this long; agents close "
        "everything when the controller is silent for this long",
    )
    hold_seconds: float = Field(10, ge=0, le=86_400)
    watch: Literal["epoll", "none"] = "epoll"
    listener: Literal["shared", "reuseport"] = "shared"
    acceptors: int = Field(1, ge=1, le=1024, description="server workers awake at a time")
    accept_nap_ms: float = Field(5, ge=0, le=1_000)
    backlog: int = Field(65_535, ge=1, le=65_535)
    liveness: Literal["none", "sample", "all"] = "sample"
    liveness_sample: int = Field(1_000, ge=1, le=1_000_000)
    echo_timeout_ms: int = Field(
        5_000, ge=10, le=120_000, description="time limit for an echo; a later answer is missing"
    )
    rounds: int = Field(
        0,
        ge=0,
        le=MOST_ROUNDS,
        description="echo rounds in the hold: one byte on every connection, one byte back",
    )
    round_window: int = Field(
        128, ge=1, le=65_536, description="connections under way in a round, per client worker"
    )
    round_timeout_ms: int = Field(
        5_000, ge=10, le=120_000, description="time limit for one answer of a round"
    )
    sequential_sample: int = Field(
        0,
        ge=0,
        le=MOST_CONNECTIONS,
        description="connections of one more round, each asked after the answer of the one before",
    )
    round_every_seconds: float = Field(
        0,
        ge=0,
        le=3_600,
        description="interval of further echo rounds until the hold ends; 0: no such rounds",
    )
    churn_percent: float = Field(
        0,
        ge=0,
        le=50,
        description="part of the held connections to close and reopen in each second of the hold",
    )
    drain: Literal["rst", "fin"] = "rst"
    drain_rate: int = Field(0, ge=0, le=1_000_000, description="closes a second; 0: no cap")
    memory_floor_mib: int = Field(
        768, ge=16, le=1_048_576, description="really free memory that every host must keep"
    )
    expect: Literal["all", "floor", "limit"] = Field(
        "all",
        description="a run passes if it holds all connections; if it reaches the memory floor; or "
        "if the limit is found and all held connections are alive",
    )
    expect_lost: int = Field(0, ge=0, description="most lost connections of a run that passes")
    step: float = Field(
        0.0625, gt=0, le=1, description="part of the connections that a step towards a limit adds"
    )
    resolution: float = Field(
        0.002,
        gt=0,
        le=1,
        description="a limit is found when a failing step is no larger than this part of the held "
        "connections",
    )
    source_ports: Literal["plan", "kernel"] = Field(
        "plan", description="the plan or the kernel (ip_local_port_range) chooses source ports"
    )
    nofile: Literal["hard", "soft"] | Annotated[int, Field(ge=256, le=2**31 - 1)] = Field(
        "hard",
        description="limit on open files that the agents use; a number: at most that many",
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="agent processes per host and side; none: as many as nofile requires",
    )
    server_workers: int | None = Field(
        None, ge=1, le=1024, description="the same for servers only; none: as in workers"
    )

    @model_validator(mode="after")
    def _ports_in_order(self) -> Scenario:
        if self.first_client_port > self.last_client_port:
            raise ValueError(
                f"first_client_port: got {self.first_client_port}, expected at most "
                f"last_client_port ({self.last_client_port})"
            )
        if len(set(self.server_ports)) != len(self.server_ports):
            raise ValueError(f"server_ports: got {self.server_ports}, expected no port twice")
        if self.control_port in self.server_ports:
            raise ValueError(
                f"control_port: got {self.control_port}, expected a port not in server_ports"
            )
        return self

    @model_validator(mode="after")
    def _limit_is_alive(self) -> Scenario:
        if self.expect == "limit" and self.liveness == "none":
            raise ValueError("liveness: got 'none', expected 'sample' or 'all' with expect: limit")
        return self

    @model_validator(mode="after")
    def _rounds_are_watched(self) -> Scenario:
        for name in ("rounds", "sequential_sample", "round_every_seconds", "churn_percent"):
            if self.watch == "none" and (value := getattr(self, name)):
                raise ValueError(f"{name}: got {value:.10g}, expected 0 with watch: none")
        return self

    @model_validator(mode="after")
    def _rounds_are_bounded(self) -> Scenario:
        every, least = self.round_every_seconds, max(1.0, self.hold_seconds / MOST_ROUNDS)
        if every and every < least:
            raise ValueError(
                f"round_every_seconds: got {every:g}, expected 0 or at least {least:g} with "
                f"hold_seconds: {self.hold_seconds:g}"
            )
        return self

    @model_validator(mode="after")
    def _churn_is_bounded(self) -> Scenario:
        if not self.churn_percent:
            return self
        percent = f"churn_percent: got {self.churn_percent:g}, expected 0"
        if self.expect != "all":
            raise ValueError(f"{percent} with expect: {self.expect}")
        if self.source_ports != "plan":
            raise ValueError(f"{percent} with source_ports: {self.source_ports}")
        rate, most = self.connections * self.churn_percent / 100, self.connect_rate or MOST_RATE
        if rate > most:
            raise ValueError(
                f"churn_percent: got {self.churn_percent:g}, expected at most "
                f"{100 * most / self.connections:g}: {most:,.0f} of {self.connections:,} "
                "connections a second"
            )
        return self

    def processes(self, server: bool) -> int | None:
        """Return the agent processes of a host of one side, if their number is given."""
        return (self.server_workers if server else None) or self.workers


def names() -> list[str]:
    """Return the names of the scenarios that come with the lab."""
    folder = resources.files("bench") / "scenarios"
    return sorted(
        entry.name.removesuffix(".yml") for entry in folder.iterdir() if entry.name.endswith(".yml")
    )


def parse_value(value: object) -> object:
    """Return a value as YAML reads it, if it came as text (Ansible gives ``-e key=5`` as text).

    Text that is not YAML stays as it is, and the field that it is for refuses it.
    """
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except (yaml.YAMLError, ValueError, RecursionError):  # an invalid date, very many brackets
        return value


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Return ``KEY=VALUE`` texts as a mapping; values are YAML scalars or lists.

    :raises InputError: for a text of another form
    """
    parsed: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set: got {text!r}, expected KEY=VALUE")
        try:
            parsed[key.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # as in parse_value
            raise InputError(
                f"--set {key.strip()}: got {brief(value)}, expected a YAML value"
            ) from error
    return parsed


def load(
    name: str, overrides: Mapping[str, Any] | None = None, connections: object = None
) -> Scenario:
    """Return the scenario of that name, with fields overridden.

    :param connections: the number that the lab is sized for, used if the scenario has no number
    :raises InputError: for an unknown name or field, or a value out of range
    """
    known = names()
    if name not in known:
        raise InputError(f"scenario: got {name!r}, expected one of {', '.join(known)}")
    text = (resources.files("bench") / "scenarios" / f"{name}.yml").read_text(encoding="utf-8")
    fields = {**yaml.safe_load(text), "name": name}
    if connections is not None:
        fields.setdefault("connections", connections)
    for key, value in (overrides or {}).items():
        if key == "name" or key not in Scenario.model_fields:
            close = ", ".join(sorted(set(Scenario.model_fields) - {"name"}))
            raise InputError(f"scenario {name}: {key}: unknown field, expected one of {close}")
        fields[key] = value
    try:
        return Scenario.model_validate(fields)
    except ValidationError as error:
        raise InputError(f"scenario {name}: {refusal(error)}") from error
