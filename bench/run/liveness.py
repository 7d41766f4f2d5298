"""Proof that both ends of held connections are alive: echoes that each side checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench.errors import LabError
from bench.hosts.agent import Agent
from bench.hosts.session import Session
from bench.results.format import Liveness
from bench.scenario import Scenario
from bench.units import plural

ECHO_SECONDS = 300.0
"""Time limit for all echoes that are requested at once: with a million connections they take
seconds, under emulation minutes."""


def prove(
    session: Session,
    scenario: Scenario,
    clients: Sequence[Agent],
    servers: Sequence[Agent],
    held: Mapping[Agent, int],
    sample: Callable[[], None],
) -> Liveness:
    """Have clients send echoes on held connections, a sample or all, and count the right answers.

    :param held: connections of each client
    :param sample: called while there is nothing else to do
    :raises LabError: if an agent fails, takes longer than :data:`ECHO_SECONDS`, or sent another
        number of echoes than ordered; if the clients got more answers than the servers sent
    """
    before = session.ask(servers, "answer", "answering", ECHO_SECONDS, on=True)
    each = max(1, scenario.liveness_sample // len(clients))
    replies = session.ask(
        clients,
        "echo",
        "echoed",
        ECHO_SECONDS,
        sample,
        mode=scenario.liveness,
        sample=each,
        patience_ms=scenario.echo_timeout_ms,
    )
    for client, message in replies.items():
        wanted = held[client] if scenario.liveness == "all" else min(each, held[client])
        if message["asked"] != wanted:
            raise LabError(
                f"host {client.name}: protocol: echoed: asked: got {message['asked']}, expected "
                f"{wanted}"
            )
    after = session.ask(servers, "answer", "answering", ECHO_SECONDS, on=False)
    echoes = sum(int(after[one]["echoes"]) - int(before[one]["echoes"]) for one in servers)
    answered = sum(int(message["answered"]) for message in replies.values())
    if echoes < answered:
        raise LabError(
            f"the clients report {plural(answered, 'answered echo')}, but the servers answered "
            f"{echoes:,}: one of the counts is wrong"
        )
    unanswered = {
        agent.name: int(message["asked"]) - int(message["answered"])
        for agent, message in replies.items()
    }
    return Liveness(
        mode=scenario.liveness,
        asked=sum(int(message["asked"]) for message in replies.values()),
        answered=answered,
        wrong=sum(int(message["wrong"]) for message in [*replies.values(), *after.values()]),
        unanswered={name: count for name, count in sorted(unanswered.items()) if count},
    )
