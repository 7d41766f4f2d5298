"""Counting the connections in a range of ports."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pydantic import Field

from bench.claims.lab import Lab
from bench.claims.model import Claim, Found, Judgement, Parameters
from bench.errors import LabError
from bench.hosts.count import Count
from bench.plan import planning
from bench.plan.topology import Topology
from bench.results.format import Run
from bench.scenario import MOST_CONNECTIONS, Scenario

FIRST_PORT = 6_000
"""First server port: those from 5000 on may belong to proxies (role reverse_proxy)."""

SECONDS = 5.0
"""The longest useful time for a count: nobody waits longer for an answer."""


class CountParameters(Parameters):
    """The connections that are held during the count."""

    connections: int = Field(ge=1, le=MOST_CONNECTIONS)
    ports: int = Field(ge=1, le=1_024)
    """Server ports that share them."""


class CountFound(Found):
    """The counts and the connections held."""

    held: int = Field(description="ESTAB connections held, by the run's own count (ss)")
    counted: int = Field(description="counted on ports 1-65535 by the kernel's socket diagnostics")
    ports: int = Field(description="server ports that shared them")
    wrong_ports: int = Field(description="of those, counted with another number than was opened")
    seconds: float = Field(description="counting on the host, by port, seconds")
    seconds_in_all: float = Field(description="the whole command, SSH and agent included, seconds")


def measure(lab: Lab, parameters: CountParameters) -> CountFound:
    """Hold connections on several ports and count them meanwhile."""
    ports = list(range(FIRST_PORT, FIRST_PORT + parameters.ports))
    counted: list[tuple[Count, float]] = []

    def during() -> None:
        began = time.monotonic()
        found = lab.count("1-65535", "port")
        counted.append((found, time.monotonic() - began))

    done = lab.held(
        during=during,
        connections=parameters.connections,
        server_ports=ports,
        server_addresses=1,
        hold_seconds=1,
    )
    if not counted:
        raise LabError("the run ended before its connections could be counted")
    found, seconds = counted[0]
    opened = _opened(lab, done, ports)
    return CountFound(
        held=done.measured.established.ss,
        counted=sum(found.counts.get(str(port), 0) for port in ports),
        ports=parameters.ports,
        wrong_ports=sum(
            found.counts.get(str(port), 0) != number
            for port, number in zip(ports, opened, strict=True)
        ),
        seconds=round(found.seconds, 3),
        seconds_in_all=round(seconds, 3),
    )


def _opened(lab: Lab, done: Run, ports: Sequence[int]) -> list[int]:
    """Return the planned connections of a run at each of the first server's ports."""
    used = Scenario.model_validate(done.config)
    topology = Topology(used, lab.inventory)
    there, _ = planning.there(topology, done.hosts)
    tuples = planning.plan_for(topology, there)
    address = topology.listening(lab.server)[0]
    return [tuples.held_by([(address, port)]) for port in ports]


def judge(found: CountFound) -> Judgement:
    """Judge it confirmed if the count is the number held, and took seconds."""
    measured = (
        f"{found.counted:,} of {found.held:,} connections on {found.ports} ports counted in "
        f"{found.seconds:.2f} s ({found.seconds_in_all:.1f} s with SSH)"
    )
    if found.counted != found.held or found.wrong_ports:
        return Judgement("inconclusive", measured, "what was counted is not what was held")
    if found.seconds > SECONDS:
        return Judgement(
            "depends", measured, f"the number is right and took longer than {SECONDS:.0f} s"
        )
    return Judgement(
        "confirmed",
        measured,
        "the kernel filters by port itself (sock_diag) and tells 72 bytes a socket, so that "
        "nothing is printed and searched",
    )


CLAIM = Claim(
    id="count-by-port",
    said="A script can count the TCP connections in a range of ports (1-65535 by default).",
    cure="Use `python -m bench count --ports 1-65535 --by port` instead of netstat and grep.",
    read="docs/counting.md",
    small=CountParameters(connections=20_000, ports=4),
    full=CountParameters(connections=1_000_000, ports=4),
    measure=measure,
    judge=judge,
    connections=lambda parameters: parameters.connections,
)
