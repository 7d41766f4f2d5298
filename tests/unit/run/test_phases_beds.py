"""The phases of a run over two servers and two clients, of which no two figures are alike."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import answers
import pytest
from captured import collected

from bench.errors import LabError
from bench.inventory import Host, Inventory
from bench.plan.topology import Topology
from bench.results.format import Established
from bench.results.store import Store
from bench.run import phases, strays
from bench.run.curve import Recorder
from bench.run.phases import Conduct
from bench.scenario import Scenario

FACTS = {
    **answers.FACTS,
    "sysctl": {"fs.file-max": "400000", "fs.nr_open": "1048576"},
}
HELD = {"server1": 601, "server2": 400, "client1": 502, "client2": 501}


def host(name: str, address: str) -> Host:
    group = "servers" if name.startswith("server") else "clients"
    return Host(name, (group,), name, 22, "lab", None, None, (address,))


HOSTS = [
    host("server1", "198.18.0.1"),
    host("server2", "198.18.0.2"),
    host("client1", "198.18.1.1"),
    host("client2", "198.18.1.2"),
]


class FakeAgent:
    def __init__(self, session: FakeSession, host: Host) -> None:
        self.name, self.host, self.role = host.name, host, host.groups[0].removesuffix("s")
        self.session, self.planned = session, None

    def tell(self, message: Any) -> None:
        self.session.log.append((message["op"], [self.name], message))


class FakeSession:
    """Agents that answer at once, and all that was said to them, in order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, list[str], dict[str, Any]]] = []
        self.agents = [FakeAgent(self, one) for one in HOSTS]
        self.on_unasked: Callable[[Any, Any], None] = lambda agent, message: None
        self.while_ramping: Callable[[Callable[[], None]], None] = lambda idle: None

    def tell(self, agents: Sequence[Any], op: str) -> None:
        self.log.append((op, [one.name for one in agents], {}))

    def ask(
        self,
        agents: Sequence[Any],
        op: str,
        event: str,
        seconds: float,
        idle: Callable[[], None] = lambda: None,
        **fields: Any,
    ) -> dict[Any, dict[str, Any]]:
        self.tell(agents, op)
        if op == "ramp":
            self.while_ramping(idle)
        return {one: self.answer(one, op) for one in agents}

    def answer(self, one: FakeAgent, op: str) -> dict[str, Any]:
        number = int(one.name[-1])
        answers: dict[str, dict[str, Any]] = {
            "facts": {**FACTS, "addresses": list(one.host.data_addresses)},
            "ramp": {"held": 500, "lost": 2 + number, "latency": {}, "reason": "lost"},
            "verify": {"alive": HELD[one.name], "dead": 10 * number},
            "echo": {"asked": 5, "answered": 5, "wrong": 0},
            "count": {"total": 0},
        }
        return answers.get(op, {"held": 500, "wrong": 0})

    def gather(
        self, agents: Sequence[Any], event: str, seconds: float, idle: Any = None
    ) -> dict[Any, dict[str, Any]]:
        self.log.append((f"gather {event}", [one.name for one in agents], {}))
        if event != "collected":
            return {one: {"workers": 3} for one in agents}
        return {one: self.collected(one) for one in agents}

    def collected(self, one: FakeAgent) -> dict[str, Any]:
        held = HELD[one.name]
        counted = held - 1 if one.role == "server" else None
        phase = next(told["phase"] for op, _, told in reversed(self.log) if op == "collect")
        return {
            **collected("6.1", "before", held=held, held_each=[held], established=counted),
            "phase": phase,
        }

    def wait(self, seconds: float, idle: Any = None) -> None:
        return None

    def tick(self, name: str, held: int) -> None:
        (agent,) = [one for one in self.agents if one.name == name]
        message = {
            "event": "tick",
            "t": strays.time.monotonic(),
            "held": held,
            "opened": held,
            "retried": 0,
            "errors": {},
            "latency": {},
            "mem_available_kib": 1 << 20,
            "mem_free_kib": 1 << 20,
            "slab_kib": 1,
        }
        self.on_unasked(agent, message)


class Bed:
    def __init__(self, folder: Path, **fields: Any) -> None:
        self.session = FakeSession()
        usual: dict[str, Any] = {"connections": 1_003, "clients": 2, "liveness": "none"}
        self.scenario = Scenario(name="test", title="test", **{**usual, **fields})
        inventory = Inventory("test", "vm", {one.name: one for one in HOSTS}, False, None, None)
        session: Any = self.session
        recorder = Recorder(1_003, io.StringIO(), lambda now: None)
        self.store = Store(folder)
        run_id, _ = self.store.create("test", phases.datetime.now(phases.UTC))
        self.conduct = Conduct(
            Topology(self.scenario, inventory), session, recorder, self.store, run_id, "00" * 16
        )


@pytest.fixture
def bed(tmp_path: Path) -> Callable[..., Bed]:
    return lambda **fields: Bed(tmp_path, **fields)


def test_doors_are_opened_once_all_clients_have_proven_them(bed: Callable[..., Bed]) -> None:
    made = bed()
    made.conduct.prepare()
    order = [(op, names) for op, names, _ in made.session.log if op not in ("facts", "collect")]
    assert order[:9] == [
        ("serve", ["server1"]),
        ("serve", ["server2"]),
        ("gather serving", ["server1", "server2"]),
        ("prepare", ["client1"]),
        ("prepare", ["client2"]),
        ("gather prepared", ["client1", "client2"]),
        ("open", ["server1", "server2"]),
        ("count", ["server1", "server2"]),
        ("gather collected", ["server1", "server2", "client1", "client2"]),
    ]


def test_each_client_is_held_to_its_part_of_the_plan(bed: Callable[..., Bed]) -> None:
    made = bed()
    made.conduct.prepare()
    planned = [one.planned for one in made.session.agents]
    assert sorted(planned[2:]) == [501, 502]


def test_a_server_is_held_to_its_part_and_a_queue_of_strangers(bed: Callable[..., Bed]) -> None:
    made = bed(retries=2)
    made.conduct.prepare()
    planned = [one.planned for one in made.session.agents]
    assert sorted(planned[:2]) == [501 * 3 + 65_536, 502 * 3 + 65_536]


@pytest.mark.parametrize(
    ("fields", "places"),
    [
        ({}, 2 * 65_536),
        ({"backlog": 99}, 2 * 100),
        ({"backlog": 99, "listener": "reuseport"}, 2 * 3 * 100),
        ({"backlog": 99, "server_ports": [5000, 5001, 5002]}, 2 * 3 * 100),
    ],
)
def test_clients_may_be_ahead_by_all_queues_and_windows(
    bed: Callable[..., Bed], fields: dict[str, Any], places: int
) -> None:
    made = bed(max_in_flight=77, **fields)
    made.conduct.prepare()
    assert made.conduct._ahead() == places + 2 * 77


def test_the_kernel_may_keep_queues_shorter(
    bed: Callable[..., Bed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FACTS, "sysctl", {**FACTS["sysctl"], "net.core.somaxconn": "49"})
    made = bed(max_in_flight=77)
    made.conduct.prepare()
    assert made.conduct._ahead() == 2 * 50 + 2 * 77


def leading(made: Bed, seconds: float, *held: tuple[str, int]) -> None:
    """A ramp in which ticks come twice, that much later the second time."""

    def ramp(idle: Callable[[], None]) -> None:
        for _ in range(3):
            for name, count in held:
                made.session.tick(name, count)
            idle()
            clock.now += seconds

    class Clock:
        now = 1_000.0

    clock = Clock()
    made.session.while_ramping = ramp
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strays.time, "monotonic", lambda: clock.now)
        patch.setattr(strays.Strays.__init__, "__defaults__", (lambda: clock.now,))
        made.conduct.ramp()


@pytest.mark.parametrize(
    ("listener", "more", "ends"), [("shared", 354, False), ("shared", 355, True)]
)
def test_connections_that_no_server_has_end_the_ramp(
    bed: Callable[..., Bed], listener: str, more: int, ends: bool
) -> None:
    made = bed(max_in_flight=77, backlog=99, listener=listener, path="direct")
    made.conduct.prepare()
    held = (("server1", 20), ("server2", 30), ("client1", 40), ("client2", 10 + more))
    if not ends:
        leading(made, 2.0, *held)
        return
    line = "^the clients hold 355 connections more than the servers have accepted: some lead else"
    with pytest.raises(LabError, match=line):
        leading(made, 2.0, *held)


def test_a_ramp_ends_when_its_time_is_over(bed: Callable[..., Bed]) -> None:
    made = bed(ramp_timeout_seconds=30)
    made.conduct.prepare()
    leading(made, 14.0)
    assert not [op for op, _, _ in made.session.log if op == "halt"]
    leading(made, 16.0)
    halts = [names for op, names, _ in made.session.log if op == "halt"]
    assert halts == [["client1", "client2"]]
    assert made.conduct.found.stopped_by == "timeout"


def test_what_all_clients_lost_and_found_dead_is_lost(bed: Callable[..., Bed]) -> None:
    made = bed(hold_seconds=0)
    made.conduct.prepare()
    leading(made, 0.1)
    assert made.conduct.found.lost == 3 + 4
    made.conduct.hold()
    assert made.conduct.found.lost == 3 + 4 + 10 + 20
    assert made.conduct.found.lost_in_hold == 10 + 20


def test_a_client_whose_living_are_not_those_that_it_holds_is_wrong(
    bed: Callable[..., Bed], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bed(hold_seconds=0)
    made.conduct.prepare()
    usual = made.session.answer
    monkeypatch.setattr(made.session, "answer", lambda one, op: {**usual(one, op), "alive": 501})
    line = "^host client1: protocol: verified: alive: got 501, expected the 502 held$"
    with pytest.raises(LabError, match=line):
        made.conduct.hold()


def test_each_count_is_that_of_its_own_side(bed: Callable[..., Bed]) -> None:
    made = bed(hold_seconds=0)
    made.conduct.prepare()
    made.conduct.hold()
    counts = Established(clients=1_003, servers=1_001, ss=999)
    assert made.conduct.found.peak == made.conduct.found.held_end == counts
    states = [told["state"] for op, _, told in made.session.log if op == "collect"]
    assert set(states[4:]) == {"established"}


def test_what_is_left_after_the_drain_is_looked_for_in_every_state(
    bed: Callable[..., Bed], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bed()
    made.conduct.prepare()
    monkeypatch.setattr(phases.drain, "everything", lambda *_: (0, 1.5))
    made.session.log.clear()
    made.conduct.drain()
    told = [told for op, _, told in made.session.log if op == "collect"]
    assert {(each["phase"], each["state"]) for each in told} == {("after", "connected")}
    counts = [each["count"] for each in told]
    assert counts == [[("198.18.0.1", 5000)], [("198.18.0.2", 5000)], None, None]
    assert made.conduct.found.left_after == 999


def test_what_a_server_did_not_count_after_the_drain_is_not_none(
    bed: Callable[..., Bed], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bed()
    made.conduct.prepare()
    monkeypatch.setattr(phases.drain, "everything", lambda *_: (0, 1.5))
    usual = made.session.collected

    def uncounted(one: FakeAgent) -> dict[str, Any]:
        found = usual(one)
        return found if one.name != "server2" else {**found, "established": None}

    monkeypatch.setattr(made.session, "collected", uncounted)
    made.conduct.drain()
    assert made.conduct.found.left_after is None


def test_time_waits_of_an_earlier_run_are_not_left_over(
    bed: Callable[..., Bed], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bed()
    usual = made.session.answer
    monkeypatch.setattr(
        made.session,
        "answer",
        lambda one, op: {"total": 300} if op == "count" else usual(one, op),
    )
    made.conduct.prepare()
    monkeypatch.setattr(phases.drain, "everything", lambda *_: (0, 1.5))
    made.conduct.drain()
    assert made.conduct.found.left_after == 999 - 600


def test_evidence_of_another_phase_is_refused(
    bed: Callable[..., Bed], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bed()
    usual = made.session.collected
    monkeypatch.setattr(made.session, "collected", lambda one: {**usual(one), "phase": "peak"})
    line = r"^host server1: protocol: collected: phase: got 'peak', expected 'before'$"
    with pytest.raises(LabError, match=line):
        made.conduct.prepare()
