"""Facts and evidence of hosts on which nothing is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from bench.agent import bundle
from bench.hosts import messages
from bench.hosts.agent import Agent
from bench.hosts.session import Connect, Session
from bench.plan.topology import Topology
from bench.results import facts
from bench.results.format import HostRecord

SECONDS = 60.0
"""Seconds for one host's answer: its evidence takes a fraction of a second while it holds
nothing."""

SYSCTLS = tuple(messages.SYSCTLS)
"""The parameters that are recorded for every host."""


def hosts(session: Session, agents: Sequence[Agent]) -> dict[str, HostRecord]:
    """Return the records of hosts by name, still without evidence."""
    told = session.ask(agents, "facts", "facts", SECONDS, sysctls=list(SYSCTLS))
    return {agent.name: facts.host_record(told[agent], agent.host.groups) for agent in agents}


def look(
    topology: Topology, connect: Connect
) -> tuple[dict[str, HostRecord], dict[str, Mapping[str, str]]]:
    """Return every server and client of a scenario as it is now.

    :return: each host's record with the phase ``before``, and its texts

    :raises LabError: if a host cannot be reached or does not answer.
    :raises InputError: if a host has no Python that can run the agent.
    """
    wanted = {host.name: (host, "server") for host in topology.servers}
    for host in topology.clients:
        wanted.setdefault(host.name, (host, "client"))
    with Session(connect, bundle.build().data) as session:
        session.start(wanted.values())
        found = hosts(session, session.agents)
        told = session.ask(
            session.agents, "collect", "collected", SECONDS, phase="before", count=None
        )
        taken = datetime.now(UTC)
        for agent, message in told.items():
            facts.check_phase(agent.name, message, "before")
            found[agent.name].phases["before"] = facts.phase(message, taken)
        texts = {agent.name: message["texts"] for agent, message in told.items()}
        session.close(drained=True)
    return found, texts
