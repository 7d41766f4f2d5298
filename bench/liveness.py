"""The proof that both ends of held connections are alive: echoes that each side checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.results import Liveness
from bench.scenario import Scenario
from bench.session import Agent, Session

ECHO_SECONDS = 300.0
"""For all echoes that are asked for at once: with a million connections that takes seconds, under
emulation minutes."""


def prove(
    session: Session,
    scenario: Scenario,
    clients: Sequence[Agent],
    servers: Sequence[Agent],
    sample: Callable[[], None],
) -> Liveness:
    """Have clients ask on held connections, a sample or all, and count the right answers.

    :param sample: called while there is nothing else to do
    :raises LabError: if an agent fails or takes longer than :data:`ECHO_SECONDS`.
    """
    session.ask(servers, "answer", "answering", ECHO_SECONDS, on=True)
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
    ).values()
    ended = session.ask(servers, "answer", "answering", ECHO_SECONDS, on=False).values()
    return Liveness(
        mode=scenario.liveness,
        asked=sum(int(message["asked"]) for message in replies),
        answered=sum(int(message["answered"]) for message in replies),
        wrong=sum(int(message["wrong"]) for message in [*replies, *ended]),
    )
