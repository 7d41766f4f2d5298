"""How many connections the kernel finds source ports for, measured as a limit."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from bench import scenario
from bench.claims.lab import Lab, NotMeasurable
from bench.claims.model import Found, Parameters
from bench.claims.portrange import LAST, RANGE, span
from bench.inventory import Host
from bench.plan.topology import Topology
from bench.results import facts
from bench.results.format import Run

ENOUGH = 512
"""Connections asked for beyond those that ports allow, for each pair of a client address and a
target, so that the run ends at the limit and not at its own end."""

IN_FLIGHT = 300
"""Connects under way for each pair, if there are several pairs. A step ends after twice as many
refusals (bench.run.ceiling), and while one pair is full another may have ports left. So the last
step may try everything that is asked for beyond what ports allow."""


def _once(value: list[Literal[4, 6]]) -> list[Literal[4, 6]]:
    if len(set(value)) != len(value):
        raise ValueError(f"got {value}, expected each IP version once")
    return value


Families = Annotated[list[Literal[4, 6]], Field(min_length=1, max_length=2), AfterValidator(_once)]
"""IP versions that a claim is measured over."""


class RangesParameters(Parameters):
    """Which ranges of source ports are used up."""

    ranges: list[str] = Field(max_length=16)
    """Ranges as in ip_local_port_range: the kernel chooses from them."""
    explicit: list[str] = Field(max_length=16)
    """Ranges whose ports are bound one by one."""
    families: Families

    @field_validator("ranges", "explicit")
    @classmethod
    def _are_ranges(cls, value: list[str]) -> list[str]:
        for one in value:
            span(one)
        return value

    @field_validator("explicit")
    @classmethod
    def _is_one_at_least(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if not value and info.data.get("ranges") == []:
            raise ValueError("got no range here nor in ranges, expected one at least")
        return value


class Filled(Found):
    """Connections opened until the next one was refused."""

    family: int = Field(description="IP version")
    ports: str = Field(description="source ports, first and last")
    chosen_by: str = Field(description="who chooses them: the kernel, or the plan (bind)")
    addresses: int = Field(description="client addresses")
    targets: int = Field(description="server addresses and ports")
    allowed: int = Field(description="ports x client addresses x targets, less reserved ports")
    held: int = Field(description="ESTAB connections, by ss on the server")
    refused: dict[str, int] = Field(description="connects refused, errno name to count")
    bound_by: str = Field(description="the limit that stopped them, as diagnosed")
    first_half_rate: int = Field(description="connections a second for the first half of them")
    second_half_rate: int = Field(description="the same for the second half")

    @property
    def exact(self) -> bool:
        """Whether ports were the limit, and every port was used."""
        named = "tuples" if self.chosen_by == "plan" else "ip_local_port_range"
        return self.held == self.allowed and self.bound_by == named


def filled(lab: Lab, client: Host, ports: str, **fields: Any) -> Filled:
    """Let the kernel choose source ports from a range until it finds none.

    connect(2) looks for a port that is free for its four-tuple (net/ipv4/inet_hashtables.c
    ``__inet_hash_connect``: EADDRNOTAVAIL). Ports of the host's connections to other targets count
    as free; ports that bind(2) has given to a socket do not.

    :param ports: the range in the sysctl's form
    :raises NotMeasurable: if the range cannot be set.
    """
    several = _pairs(fields)
    wanted = len(span(ports)) * several
    # From 1: more four-tuples than the kernel has ports for. None of them is bound.
    connections = min(LAST * several, wanted + ENOUGH * several)
    with lab.settings([client], sysctl={RANGE: ports}):
        done = lab.held(
            **_usual(fields),
            connections=connections,
            step=wanted / 2 / connections,
            first_client_port=1,
            source_ports="kernel",
        )
    return _row(lab, client, done, ports, done.predicted.limits["ip_local_port_range"])


def planned(lab: Lab, client: Host, ports: str, **fields: Any) -> Filled:
    """Bind every source port of a range explicitly, and connect from it."""
    wanted = span(ports)
    several = _pairs(fields)
    done = lab.run(
        **_usual(fields),
        connections=len(wanted) * several,
        step=0.5,
        retries=0,  # a port that is in use is refused once
        first_client_port=wanted[0],
        last_client_port=wanted[-1],
    )
    return _row(lab, client, done, ports, done.predicted.limits["tuples"])


def families(lab: Lab, wanted: Sequence[int]) -> list[int]:
    """Return those of the IP versions in which both the first server and client have an address.

    :raises NotMeasurable: if there is none.
    """
    found = [
        one for one in wanted if addresses(lab, lab.client, one) and addresses(lab, lab.server, one)
    ]
    if not found:
        versions = " or ".join(f"IPv{one}" for one in wanted)
        raise NotMeasurable(f"the first server and client have no {versions} address both")
    return found


def addresses(lab: Lab, host: Host, family: int) -> list[str]:
    """Return a host's planned addresses of an IP version that it really had when last asked.

    Addresses that are reached only through a router are left out.
    """
    local = facts.Local(lab.hosts[host.name])
    return [
        str(one)
        for one in map(ipaddress.ip_address, host.data_addresses)
        if one.version == family and one in local
        if str(one) not in host.routed_addresses
    ]


def _pairs(fields: dict[str, Any]) -> int:
    """Return client addresses x server addresses x server ports."""
    ends = len(fields.get("server_ports", (5000,))) * int(fields.get("server_addresses", 1))
    return ends * int(fields.get("client_addresses", 1))


def _usual(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a run to a limit of ports: a step that fails has used all ports."""
    several = _pairs(fields)
    return {
        "expect": "limit",
        "clients": 1,
        "client_addresses": 1,
        "server_addresses": 1,
        "resolution": 0.5 if several == 1 else 0.05,
        "max_in_flight": 32 if several == 1 else IN_FLIGHT * several,
        "ramp_timeout_seconds": 1800.0,
        **fields,
    }


def _row(lab: Lab, client: Host, done: Run, ports: str, allowed: int) -> Filled:
    used = scenario.Scenario.model_validate(done.config)
    errors: dict[str, int] = {}
    for step in done.measured.steps:
        for name, count in step.errors.items():
            errors[name] = errors.get(name, 0) + count
    rates = [
        round((step.held - before) / step.seconds)
        for step, before in zip(
            done.measured.steps, [0, *(step.held for step in done.measured.steps)], strict=False
        )
        if step.seconds
    ]
    topology = Topology(used, lab.inventory)
    return Filled(
        family=topology.family,
        ports="-".join(ports.split()),
        chosen_by=used.source_ports,
        addresses=len(topology.sources(client)),
        targets=len(topology.targets),
        allowed=allowed,
        held=done.measured.established.ss,
        refused=errors,
        bound_by=done.bound_by,
        first_half_rate=rates[0] if rates else 0,
        second_half_rate=rates[1] if len(rates) > 1 else 0,
    )
