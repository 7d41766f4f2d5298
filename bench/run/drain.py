"""The end of a run: close every connection, including server ends that missed the clients' RST."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bench.errors import LabError
from bench.hosts.agent import Agent
from bench.hosts.session import Session
from bench.scenario import Scenario

DRAIN_SECONDS = 600.0
"""Time limit for all connections to close."""

SWEEP_SECONDS = 20.0
"""Time between two sweeps of a server that does not watch its connections while the clients close.
A sweep closes the server ends of connections closed so far, so that fewer are left for the end."""

STILL_SECONDS = 10.0
"""Time without a change in the servers' counts after which no more RSTs are on the way."""

POLL_SECONDS = 0.05
"""Time between two requests for the servers' counts."""


def everything(
    session: Session,
    scenario: Scenario,
    clients: Sequence[Agent],
    servers: Sequence[Agent],
    sample: Callable[[], None],
) -> tuple[int, float]:
    """Close every connection from the client side, then the connections left on the servers.

    :param sample: called while there is nothing else to do
    :return: connections that the servers had to close, and the seconds that the drain took
    :raises LabError: if connections are open after :data:`DRAIN_SECONDS`
    """
    began = swept = time.monotonic()

    def watch() -> None:
        nonlocal swept
        sample()
        if scenario.watch == "none" and time.monotonic() - swept > SWEEP_SECONDS:
            swept = time.monotonic()
            session.tell(servers, "status")

    session.ask(
        clients,
        "drain",
        "drained",
        DRAIN_SECONDS,
        watch,
        how=scenario.drain,
        rate=scenario.drain_rate // len(clients),
    )
    lost = _close_rest(session, servers, sample, began)
    return lost, round(time.monotonic() - began, 3)


def _close_rest(
    session: Session, servers: Sequence[Agent], sample: Callable[[], None], began: float
) -> int:
    """Wait until the servers hold nothing; return how many connections they had to close.

    A RST is sent once and never answered (RFC 9293, 3.5.2): if a link drops it, the server does not
    learn that the connection has ended. When nothing changes any more, all connections that the
    servers still hold are of that kind.
    """
    closed, least, moved = 0, -1, time.monotonic()
    while True:
        status = session.ask(servers, "status", "status", DRAIN_SECONDS, sample)
        left = sum(int(message["held"]) for message in status.values())
        now = time.monotonic()
        if not left:
            return closed
        if now - began > DRAIN_SECONDS:
            raise LabError(f"connections are still open {DRAIN_SECONDS:.0f} s after the drain")
        if least < 0 or left < least:
            least, moved = left, now
        elif now - moved > STILL_SECONDS:
            closed += left
            session.ask(servers, "drain", "drained", DRAIN_SECONDS, how="rst", rate=0)
        session.wait(POLL_SECONDS)
