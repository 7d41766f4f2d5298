"""What addresses and ports allow: the claims about 65,535 connections."""

from __future__ import annotations

from pydantic import Field

from bench.claims.lab import Lab
from bench.claims.model import Claim, Found, Judgement, Parameters
from bench.claims.portrange import LAST
from bench.plan import planning
from bench.plan.topology import Topology
from bench.results.format import Run
from bench.scenario import MOST_CONNECTIONS, Scenario


class PortMythParameters(Parameters):
    """How many connections one server address and port should hold."""

    connections: int = Field(ge=1, le=MOST_CONNECTIONS)


class PortMythFound(Found):
    """The connections that one server address and port held."""

    held: int = Field(description="ESTAB connections on one server address and port, by ss")
    client_addresses: int = Field(description="addresses that they came from")
    echoes_asked: int = Field(description="of the held connections, asked for an echo")
    echoes_answered: int = Field(description="of those, that answered rightly")


def measure_port_myth(lab: Lab, parameters: PortMythParameters) -> PortMythFound:
    """Hold more connections than there are ports, on one port."""
    done = lab.held(connections=parameters.connections, server_addresses=1, server_ports=[5000])
    return PortMythFound(
        held=done.measured.established.ss,
        client_addresses=_sources(lab, done),
        echoes_asked=done.measured.liveness.asked,
        echoes_answered=done.measured.liveness.answered,
    )


def _sources(lab: Lab, done: Run) -> int:
    """Return the number of client addresses in a run's plan."""
    used = Scenario.model_validate(done.config)
    topology = Topology(used, lab.inventory)
    there, _ = planning.there(topology, done.hosts)
    blocks = planning.plan_for(topology, there).blocks
    return len({block["source"] for of_client in blocks.values() for block in of_client})


def judge_port_myth(found: PortMythFound) -> Judgement:
    """Judge it refuted by one connection more than there are ports."""
    measured = (
        f"{found.held:,} ESTAB on one server address and port; client addresses: "
        f"{found.client_addresses}"
    )
    if found.held > LAST and found.echoes_answered == found.echoes_asked > 0:
        return Judgement(
            "refuted",
            measured,
            "a server port is shared by all its connections; only client address and port have to "
            "differ",
        )
    return Judgement("inconclusive", measured, "no more than 65,535 connections were held")


CLAIM = Claim(
    id="port-myth",
    said="A server can hold at most 65,535 connections, because ports have 16 bits.",
    cure="Nothing to cure: one listening port is enough for any number of clients.",
    read="docs/scenarios.md",
    small=PortMythParameters(connections=66_000),
    full=PortMythParameters(connections=200_000),
    measure=measure_port_myth,
    judge=judge_port_myth,
    connections=lambda parameters: parameters.connections,
)
