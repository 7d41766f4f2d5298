"""The end of a run: paced, waited for, and in the end forced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bench.errors import LabError
from bench.run import drain
from bench.scenario import Scenario


class FakeSession:
    """Servers that hold what ``held`` says, one figure for each question, the last for ever."""

    def __init__(self, clock: Clock, held: Sequence[int]) -> None:
        self.clock, self.held = clock, list(held)
        self.asked: list[tuple[list[str], str, dict[str, Any]]] = []

    def ask(
        self,
        agents: Sequence[Any],
        op: str,
        event: str,
        seconds: float,
        idle: Callable[[], None] = lambda: None,
        **fields: Any,
    ) -> dict[Any, dict[str, Any]]:
        self.asked.append((list(agents), op, fields))
        if op == "drain" and agents == ["server1", "server2"]:
            self.held = [0]
        held = self.held.pop(0) if len(self.held) > 1 else self.held[0]
        return {one: {"held": held if number else 0} for number, one in enumerate(agents)}

    def tell(self, agents: Sequence[Any], op: str) -> None:
        raise AssertionError(op)

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    def drains(self) -> list[tuple[list[str], dict[str, Any]]]:
        return [(agents, fields) for agents, op, fields in self.asked if op == "drain"]


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(drain.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def ended(clock: Clock, held: Sequence[int], **fields: Any) -> tuple[FakeSession, int, float]:
    session: Any = FakeSession(clock, held)
    wanted = Scenario(name="test", title="test", **fields)
    clients: Any = ["client1", "client2", "client3"]
    servers: Any = ["server1", "server2"]
    lost, seconds = drain.everything(session, wanted, clients, servers, lambda: None)
    return session, lost, seconds


def test_clients_share_the_rate_at_which_they_close(clock: Clock) -> None:
    session, lost, _ = ended(clock, [0], drain_rate=1_000, drain="fin")
    assert session.drains() == [
        (["client1", "client2", "client3"], {"how": "fin", "rate": 333}),
    ]
    assert lost == 0


def test_what_comes_in_time_is_waited_for(clock: Clock) -> None:
    session, lost, seconds = ended(clock, [9, 9, 7, 7, 4, 0])
    assert lost == 0 and len(session.drains()) == 1
    assert seconds == pytest.approx(3 * drain.POLL_SECONDS, abs=0.11)


def test_what_no_longer_moves_is_closed_by_the_servers_and_counted(clock: Clock) -> None:
    session, lost, seconds = ended(clock, [9, 7])
    assert lost == 7
    assert session.drains()[1:] == [(["server1", "server2"], {"how": "rst", "rate": 0})]
    assert drain.STILL_SECONDS < seconds < drain.STILL_SECONDS + 1


def test_a_drain_has_an_end(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "STILL_SECONDS", 1e9)
    with pytest.raises(LabError, match=r"^connections are still open 600 s after the drain$"):
        ended(clock, [9])
    assert clock.now < 100 + drain.DRAIN_SECONDS + 1
