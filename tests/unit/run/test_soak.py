"""A long hold, led over a session that plays the agents."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bench.errors import LabError
from bench.results import words
from bench.results.format import AgentsMemory, Churn, Latency, MemoryPoint
from bench.run import soak
from bench.run.curve import Progress, Recorder
from bench.scenario import Scenario

HELD = 997


class Agent:
    def __init__(self, role: str, held: int) -> None:
        self.role, self.held = role, held
        self.heard: list[dict[str, Any]] = []

    def tell(self, message: dict[str, Any]) -> None:
        self.heard.append(message)


class Session:
    """Agents that carry out everything at once, on a clock that only waiting moves."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock
        self.server, self.few, self.many = Agent("server", HELD), Agent("client", 97), None
        self.clients = [self.few, Agent("client", 900), Agent("client", 0)]
        self.asked: list[str] = []
        self.told: list[str] = []
        self.behind = 0
        self.lost = 0
        self.kib = 10_000

    def tell(self, agents: Sequence[Agent], op: str) -> None:
        assert all(agent.held for agent in agents)
        self.told.append(op)

    def wait(self, seconds: float, idle: Callable[[], None]) -> None:
        self.clock[0] += seconds
        idle()

    def gather(
        self, agents: Sequence[Agent], event: str, seconds: float, idle: Callable[[], None]
    ) -> dict[Agent, Any]:
        assert event == "churned"
        orders = [agent.heard[-1] for agent in agents]
        self.clock[0] += orders[0]["seconds"]
        assert seconds > orders[0]["seconds"] + 60
        idle()
        idle()
        closed = [round(order["rate"] * order["seconds"]) for order in orders]
        return {
            agent: {
                "closed": count,
                "opened": count - self.lost,
                "lost": self.lost,
                "errors": {"ETIMEDOUT": self.lost} if self.lost else {},
                "latency": {"20": count},
                "seconds": orders[0]["seconds"],
            }
            for agent, count in zip(agents, closed, strict=True)
        }

    def ask(
        self,
        agents: Sequence[Agent],
        op: str,
        event: str,
        seconds: float,
        idle: Callable[[], None] = lambda: None,
        **fields: Any,
    ) -> dict[Agent, Any]:
        self.asked.append(op)
        answers: dict[str, Callable[[Agent], dict[str, Any]]] = {
            "status": self._status,
            "answer": lambda agent: {"on": fields["on"]},
            "round": lambda agent: {
                "asked": agent.held,
                "answered": agent.held,
                "wrong": 0,
                "silent": 0,
                "seconds": 0.5,
                "latency": {},
                "cpu_seconds": 0.1,
            },
            "memory": lambda agent: {"own_kib": self.kib},
        }
        if op == "memory":
            self.kib += 10
        return {agent: answers[op](agent) for agent in agents}

    def _status(self, agent: Agent) -> dict[str, Any]:
        behind = self.behind if agent is self.server else 0
        self.behind = max(0, self.behind - 1) if agent is self.server else self.behind
        return {"held": agent.held - behind, "cpu_seconds": 0.0}


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    clock = [1000.0]
    monkeypatch.setattr("bench.run.soak.time.monotonic", lambda: clock[0])
    return Session(clock)


def soaked(
    session: Session,
    seconds: float = 90,
    short: Callable[[], bool] = lambda: False,
    check: Callable[[], None] = lambda: None,
    **fields: Any,
) -> tuple[soak.Soak, list[Progress]]:
    wanted = Scenario.model_validate(
        {"name": "soak", "title": "A hold", "connections": HELD, "hold_seconds": seconds, **fields}
    )
    seen: list[Progress] = []
    recorder = Recorder(HELD, io.StringIO(), seen.append)
    one = soak.Soak(
        session,  # type: ignore[arg-type]
        wanted,
        session.clients,  # type: ignore[arg-type]
        [session.server],  # type: ignore[list-item]
        recorder,
        short,
        check,
    )
    held = {agent: agent.held for agent in session.clients}
    one.hold(held, seconds, 3)  # type: ignore[arg-type]
    return one, seen


def test_stretches_of_churn_with_a_round_after_each(session: Session) -> None:
    done, seen = soaked(session, churn_percent=1, round_every_seconds=30)
    rates = [[order["rate"] for order in agent.heard] for agent in session.clients]
    assert rates == [[0.97] * 3, [9.0] * 3, []]  # one that holds nothing is not asked
    assert done.churn is not None
    assert (done.churn.closed, done.churn.opened, done.churn.lost) == (897, 897, 0)
    assert (done.churn.seconds, done.churn.errors) == (90.0, {})
    assert done.churn.latency_us.max > 0
    assert [one.answered for one in done.rounds] == [HELD] * 3
    assert [now.phase for now in seen if "bytes answered" in now.note] == [
        "round 3",
        "round 4",
        "round 5",
    ]
    assert [one.t for one in done.memory.points] == [30.0, 60.0, 90.0]
    assert (session.asked[0], session.asked[-1]) == ("answer", "answer")


def test_churn_without_rounds_and_rounds_without_churn(session: Session) -> None:
    done, _ = soaked(session, seconds=70, churn_percent=2)
    assert (done.rounds, len(done.memory.points)) == ([], 3)
    assert "answer" not in session.asked and "round" not in session.asked
    assert [order["seconds"] for order in session.few.heard] == [30.0, 30.0, 10.0]
    done, _ = soaked(session, seconds=20, round_every_seconds=5)
    assert (done.churn, len(done.rounds), len(done.memory.points)) == (None, 4, 4)


def test_what_is_lost_is_added_up(session: Session) -> None:
    session.lost = 2
    done, seen = soaked(session, churn_percent=1)
    assert done.churn is not None
    assert (done.lost, done.churn.lost) == (12, 12)
    assert done.churn.closed - done.churn.opened == 12
    assert done.churn.errors == {"ETIMEDOUT": 12}
    assert "lost 12 (ETIMEDOUT 12)" in seen[-1].note


def test_servers_that_are_behind_are_waited_for_but_not_for_ever(session: Session) -> None:
    session.behind = 3
    before = session.clock[0]
    soaked(session, seconds=30, churn_percent=1)
    assert session.behind == 0 and session.clock[0] - before < 31
    session.server.held += 1
    before = session.clock[0]
    soaked(session, seconds=30, churn_percent=1)
    assert 40 <= session.clock[0] - before < 42


def test_connections_that_no_server_has_after_the_churn_end_it(session: Session) -> None:
    session.server.held -= 2
    line = r"^after the churn the clients hold 2 connections that no server has: lost on the way"
    with pytest.raises(LabError, match=line):
        soaked(session, seconds=30, churn_percent=1)


def test_ends_that_never_come_to_rest_are_not_waited_for_for_ever(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "wait", lambda seconds, idle: turn(seconds))

    def turn(seconds: float) -> None:
        session.clock[0] += seconds
        session.server.held = HELD + 1 + (session.server.held == HELD + 1)

    session.server.held = HELD + 1
    before = session.clock[0]
    soaked(session, seconds=30, churn_percent=1)
    assert 90 <= session.clock[0] - before < 92


def test_the_check_of_the_run_goes_on_while_connections_come_and_go(session: Session) -> None:
    def check() -> None:
        raise LabError("strays")

    with pytest.raises(LabError, match=r"^strays$"):
        soaked(session, seconds=30, churn_percent=1, check=check)


def test_want_of_memory_ends_it(session: Session) -> None:
    calls: list[int] = []

    def short() -> bool:
        calls.append(1)
        return len(calls) > 2

    done, _ = soaked(session, short=short, churn_percent=1, round_every_seconds=10)
    assert session.told.count("halt") <= 1
    assert len(session.few.heard) < 9
    assert len(done.rounds) <= 1


def test_want_of_memory_within_a_stretch_halts_those_that_churn_once(session: Session) -> None:
    done, _ = soaked(session, short=lambda: session.clock[0] > 1000, churn_percent=1)
    assert session.told == ["halt"]
    assert [len(agent.heard) for agent in session.clients] == [1, 1, 0]
    assert done.churn is not None


def test_a_slope_is_that_of_the_points() -> None:
    points = [MemoryPoint(t=30.0 * n, server_kib=1000 + 5 * n, client_kib=2000) for n in range(9)]
    found = soak.trend(points)
    assert (found.server_kib_per_minute, found.client_kib_per_minute) == (10.0, 0.0)
    assert soak.trend(points[:4]).server_kib_per_minute is None
    assert soak.trend(points[:5]).server_kib_per_minute == 10.0
    # What is taken once is no leak, however much it is.
    once = [one.model_copy(update={"server_kib": 9}) for one in points[:4]] + points[4:]
    assert soak.trend(once).server_kib_per_minute == 10.0
    assert soak.trend([]) == AgentsMemory()


def test_how_it_is_told() -> None:
    done = Churn(
        closed=1_800_000,
        opened=1_799_999,
        lost=1,
        seconds=900.0,
        errors={"ETIMEDOUT": 6},
        latency_us=Latency(p50=30, p90=50, p99=120, p999=900, max=2_000),
    )
    assert words.churned(done) == (
        "1,800,000 closed, 2,000 a second, 1,799,999 reopened, lost 1 (ETIMEDOUT 6), connect "
        "p50 30 µs, p99 120 µs"
    )
    memory = AgentsMemory(
        points=[MemoryPoint(t=30, server_kib=20_000, client_kib=30_000)],
        server_kib_per_minute=1.25,
        client_kib_per_minute=-0.5,
    )
    assert words.agents_memory(memory) == (
        "servers 20,000 KiB (+1.2 KiB a minute), clients 30,000 KiB (-0.5 KiB a minute)"
    )
