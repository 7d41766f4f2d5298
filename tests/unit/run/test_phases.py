"""The phases in order, over a session that plays the agents."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import answers
import pytest
from captured import collected

from bench.agent import spec
from bench.diagnosis.findings import Floor
from bench.errors import LabError
from bench.inventory import Host, Inventory
from bench.plan import specs
from bench.plan.topology import Topology
from bench.plan.tuples import Plan
from bench.results.store import Store
from bench.run import drain, liveness
from bench.run.curve import Progress, Recorder
from bench.run.phases import PAIRS_A_SECOND, START_SECONDS, Conduct
from bench.scenario import Scenario

MIB = 1024
FACTS = {
    **answers.FACTS,
    "sysctl": {"fs.file-max": "400000", "fs.nr_open": "1048576"},
}


def host(name: str, group: str, address: str) -> Host:
    return Host(name, (group,), name, 22, "lab", None, None, (address,))


HOSTS = {
    "server1": host("server1", "servers", "198.18.0.1"),
    "client1": host("client1", "clients", "198.18.1.1"),
}


class FakeAgent:
    def __init__(self, name: str, role: str) -> None:
        self.name, self.role, self.host = name, role, HOSTS[name]
        self.heard: list[dict[str, Any]] = []

    def tell(self, message: Any) -> None:
        self.heard.append(message)

    def specs(self) -> dict[str, Any]:
        """What it was told to do, by command."""
        return {told["op"]: told["spec"] for told in self.heard if "spec" in told}


ECHO = ("echo", {"mode": "sample", "sample": 5, "patience_ms": 90_000})


class FakeSession:
    """Agents that answer at once; what takes time calls ``idle`` as often as ``during`` says."""

    def __init__(self) -> None:
        self.agents = [FakeAgent("server1", "server"), FakeAgent("client1", "client")]
        self.on_unasked: Callable[[Any, Any], None] = lambda agent, message: None
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.told: list[tuple[list[str], str]] = []
        self.during: dict[str, Callable[[Callable[[], None]], None]] = {}

    def tell(self, agents: Sequence[Any], op: str, **fields: Any) -> None:
        self.told.append(([one.name for one in agents], op))

    def ask(
        self,
        agents: Sequence[Any],
        op: str,
        event: str,
        seconds: float,
        idle: Callable[[], None] = lambda: None,
        **fields: Any,
    ) -> dict[Any, dict[str, Any]]:
        self.asked.append((op, fields))
        self.during.get(op, lambda idle: None)(idle)
        return {one: self.answer(one, op) for one in agents}

    def gather(
        self, agents: Sequence[Any], event: str, seconds: float, idle: Any = None
    ) -> dict[Any, dict[str, Any]]:
        if event == "serving":
            return {one: {"workers": 1} for one in agents}
        if event != "collected":
            return {}
        return {
            one: {**collected("6.1", "before", held=0), "phase": one.heard[-1]["phase"]}
            for one in agents
        }

    def wait(self, seconds: float, idle: Any = None) -> None:
        return None

    def answer(self, one: Any, op: str) -> dict[str, Any]:
        answers: dict[str, dict[str, Any]] = {
            "facts": {**FACTS, "addresses": list(one.host.data_addresses)},
            "ramp": {"held": 0, "lost": 0, "latency": {}, "reason": "halted"},
            "echo": {"asked": 5, "answered": 5, "wrong": 0},
            "count": {"total": 0},
        }
        return answers.get(op, {"held": 0, "wrong": 0, "echoes": 5 * self.asked.count(ECHO)})


class Bed:
    def __init__(self, folder: Path, **fields: Any) -> None:
        self.session = FakeSession()
        self.shown: list[Progress] = []
        wanted = Scenario(name="test", title="test", connections=50_000, **fields)
        inventory = Inventory("test", "vm", HOSTS, False, None, None)
        session: Any = self.session
        self.conduct = Conduct(
            Topology(wanted, inventory),
            session,
            Recorder(50_000, io.StringIO(), self.shown.append),
            Store(folder),
            "run",
            "00" * 16,
        )

    def tick(self, seconds: float, free_mib: int) -> None:
        self.session.on_unasked(
            self.session.agents[0],
            {
                "event": "tick",
                "t": seconds,
                "held": 0,
                "opened": 0,
                "retried": 0,
                "errors": {},
                "latency": {},
                "mem_available_kib": 2 * free_mib * MIB,
                "mem_free_kib": free_mib * MIB,
                "slab_kib": 1,
            },
        )


def test_the_forecast_is_said_and_kept_before_the_first_connection(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    bed.conduct.prepare()
    made = bed.conduct.found.predicted
    assert made is not None and made.forecast is not None
    assert made.forecast.mem_free_kib == 947_864
    notes = [now for now in bed.shown if now.note]
    assert [now.phase for now in notes] == ["forecast"]
    assert notes[0].note.startswith("server1 has MemFree 925.65 MiB")
    assert notes[0].mem_available_kib == made.forecast.mem_available_kib
    assert "ramp" not in [op for op, _ in bed.session.asked]


@pytest.mark.parametrize("pairs", [1, 500])
def test_the_proof_has_the_time_that_so_many_pairs_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: int
) -> None:
    bed = Bed(tmp_path, server_ports=list(range(5000, 5000 + pairs)))
    usual, waited = bed.session.gather, dict[str, float]()

    def gather(agents: Sequence[Any], event: str, seconds: float, *rest: Any) -> Any:
        waited[event] = seconds
        return usual(agents, event, seconds, *rest)

    monkeypatch.setattr(bed.session, "gather", gather)
    bed.conduct.prepare()
    assert waited["prepared"] == pytest.approx(START_SECONDS + pairs / PAIRS_A_SECOND)


def falling(bed: Bed, *free_mib: int) -> None:
    """A ramp in which the server's free memory goes this way, a look a second."""

    def ramp(idle: Callable[[], None]) -> None:
        for second, free in enumerate(free_mib):
            bed.tick(float(second), free)
            idle()

    bed.session.during["ramp"] = ramp
    bed.conduct.ramp()


def test_clients_stop_short_of_a_floor_that_is_the_aim(tmp_path: Path) -> None:
    far = Bed(tmp_path, expect="floor", memory_floor_mib=64)
    falling(far, 200, 180, 160, 140, 120)
    assert (far.session.told, far.conduct.found.stopped_by) == ([], "complete")
    near = Bed(tmp_path, expect="floor", memory_floor_mib=64)
    falling(near, 200, 180, 160, 140, 120, 104)
    assert near.session.told == [(["client1"], "halt")]
    assert near.conduct.found.stopped_by == "memory"
    assert near.conduct.found.floor == Floor("server1", "server", 104 * MIB)


def test_a_floor_that_is_not_the_aim_is_the_agents_to_keep(tmp_path: Path) -> None:
    bed = Bed(tmp_path, memory_floor_mib=64)
    falling(bed, 200, 180, 160, 140, 120, 104, 65, 64)
    assert bed.session.told == []
    bed.session.on_unasked(
        bed.session.agents[0], {"event": "floor", "mem_free_kib": 60 * MIB, "floor_kib": 64 * MIB}
    )
    falling(bed, 63)
    assert bed.session.told == [(["client1"], "halt")]


def test_who_looks_for_a_limit_goes_on_to_the_floor_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed = Bed(tmp_path, expect="limit", memory_floor_mib=64)
    bed.conduct.prepare()
    told: list[int] = []

    def gather(agents: Sequence[Any], event: str, seconds: float, idle: Any) -> dict[Any, Any]:
        for second, free in enumerate((200, 180, 160, 140, 120, 104, 65)):
            bed.tick(float(second), free)
            idle()
        told.append(len(bed.session.told))
        bed.session.on_unasked(
            bed.session.agents[0],
            {"event": "floor", "mem_free_kib": 60 * MIB, "floor_kib": 64 * MIB},
        )
        idle()
        told.append(len(bed.session.told))
        ramped = {"reason": "halted", "tried": 900, "held": 800, "lost": 0, "errors": {}}
        return {one: {**ramped, "latency": {}} for one in agents}

    monkeypatch.setattr(bed.session, "gather", gather)
    monkeypatch.setattr(bed.session, "answer", lambda one, op: {"held": 800, "errors": {}})
    bed.conduct.ramp()
    assert told == [0, 1]
    assert bed.session.told == [(["client1"], "halt")]
    found = bed.conduct.found
    assert (found.stopped_by, found.lost) == ("memory", 0)
    assert [(one.goal, one.held, one.lost) for one in found.steps] == [(900, 800, 100)]


@pytest.mark.parametrize("expect", ["all", "limit"])
def test_agents_are_told_how_far_to_go(tmp_path: Path, expect: Any) -> None:
    bed = Bed(tmp_path, expect=expect, nofile="soft", workers=3, source_ports="kernel")
    bed.conduct.prepare()
    specs = {op: made for one in bed.session.agents for op, made in one.specs().items()}
    for op, common in (("serve", spec.server), ("prepare", spec.client)):
        checked: Any = common(json.loads(json.dumps(specs[op])))
        assert (checked["nofile"], checked["workers"]) == ("soft", 3)
        assert checked["limit"] is (expect == "limit")
    assert specs["prepare"]["source_ports"] == "kernel"


def test_a_plan_smaller_than_what_was_asked_for_is_opened_at_the_full_rate(tmp_path: Path) -> None:
    bed = Bed(tmp_path, expect="limit", connect_rate=1_000, first_client_port=65_036)
    bed.conduct.prepare()
    client = bed.session.agents[1]
    assert sum(block["count"] for block in client.specs()["prepare"]["blocks"]) == 500
    assert client.specs()["prepare"]["connect_rate"] == 1_000


@pytest.mark.parametrize(("rate", "shares"), [(1_000.0, [750.0, 250.0]), (None, [0.0, 0.0])])
def test_clients_share_the_rate_as_they_share_the_plan(
    tmp_path: Path, rate: float | None, shares: list[float]
) -> None:
    bed = Bed(tmp_path, expect="limit", connect_rate=rate)
    bed.conduct.prepare()
    (block,) = bed.session.agents[1].specs()["prepare"]["blocks"]
    halves = {"client1": [{**block, "count": 300}], "client2": [{**block, "count": 100}]}
    made: Any = Plan(halves, 400)
    both = [host(name, "clients", "198.18.1.1") for name in halves]
    topology = bed.conduct.topology
    told = [specs.client(topology, one, made, "00" * 16) for one in both]
    assert [one["connect_rate"] for one in told] == shares


def test_as_many_workers_as_are_needed_are_none_on_the_wire(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    bed.conduct.prepare()
    specs = [made for one in bed.session.agents for made in one.specs().values()]
    assert [(one["nofile"], one["workers"], one["limit"]) for one in specs] == [
        ("hard", 0, False),
        ("hard", 0, False),
    ]


def test_a_limit_is_looked_for_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(tmp_path, expect="limit", step=0.25)
    bed.conduct.prepare()
    usual, told = bed.session.gather, bed.session.agents[1].heard

    def gather(agents: Sequence[Any], event: str, *rest: Any) -> dict[Any, dict[str, Any]]:
        if event != "ramped":
            return usual(agents, event, *rest)
        upto = told[-1]["upto"]
        ramped = {"reason": "complete", "tried": upto, "held": upto, "lost": 0, "errors": {}}
        return {one: {**ramped, "latency": {"7": upto}} for one in agents}

    monkeypatch.setattr(bed.session, "gather", gather)
    monkeypatch.setattr(
        bed.session, "answer", lambda one, op: {"held": told[-1]["upto"], "errors": {"EMFILE": 1}}
    )
    bed.conduct.ramp()
    found = bed.conduct.found
    assert [message["upto"] for message in told if message["op"] == "ramp"] == [
        12_500,
        25_000,
        37_500,
        50_000,
    ]
    assert (found.stopped_by, found.lost, found.latency) == ("complete", 0, {7: 50_000})
    assert [one.held for one in found.steps] == [12_500, 25_000, 37_500, 50_000]
    assert [one.errors for one in found.steps] == [{"EMFILE": 1}, {}, {}, {}]
    assert found.ramp_seconds > 0


def test_errors_are_kept_by_side_and_host(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    for at, errors in ((0, {"EMFILE": 2}), (1, {"ETIMEDOUT": 5}), (0, {"EMFILE": 3})):
        tick = {"event": "tick", "held": 0, "retried": 1, "errors": errors}
        bed.session.on_unasked(bed.session.agents[at], tick)
    assert bed.conduct.found.errors == {
        ("server", "server1"): {"EMFILE": 3},
        ("client", "client1"): {"ETIMEDOUT": 5},
    }
    assert bed.conduct.found.retried == 2


@pytest.mark.parametrize(("mode", "held"), [("sample", 3), ("sample", 4), ("all", 6), ("all", 0)])
def test_a_client_that_asks_on_other_than_it_was_told_is_found(
    tmp_path: Path, mode: str, held: int
) -> None:
    """The fake says that it has asked 5."""
    sample = 5 if mode == "all" or held < 5 else 6
    bed = Bed(tmp_path, liveness=mode, liveness_sample=sample)
    session: Any = bed.session
    clients, servers = bed.conduct.clients, bed.conduct.servers
    line = f"^host client1: protocol: echoed: asked: got 5, expected {held}$"
    each = dict.fromkeys(clients, held)
    with pytest.raises(LabError, match=line):
        liveness.prove(session, bed.conduct.scenario, clients, servers, each, lambda: None)


def test_echoes_are_given_the_time_that_the_scenario_says(tmp_path: Path) -> None:
    bed = Bed(tmp_path, echo_timeout_ms=90_000, liveness_sample=5)
    session: Any = bed.session
    clients, servers = bed.conduct.clients, bed.conduct.servers
    held = dict.fromkeys(clients, 100)
    found = liveness.prove(session, bed.conduct.scenario, clients, servers, held, lambda: None)
    assert (found.asked, found.answered, found.wrong) == (5, 5, 0)
    assert ECHO in bed.session.asked


@pytest.mark.parametrize(("watch", "sweeps"), [("none", 3), ("epoll", 0)])
def test_a_server_that_does_not_watch_closes_while_its_clients_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Any, sweeps: int
) -> None:
    bed = Bed(tmp_path, watch=watch)
    bed.conduct.prepare()
    moment = [0.0]
    monkeypatch.setattr(drain.time, "monotonic", lambda: moment[0])

    def draining(idle: Callable[[], None]) -> None:
        for second in range(65):
            moment[0] = float(second)
            idle()

    bed.session.during["drain"] = draining
    bed.conduct.drain()
    assert bed.session.told == [(["server1"], "status")] * sweeps
    assert bed.conduct.found.drain_seconds == 64.0


def test_what_a_lost_reset_left_open_is_closed_by_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed = Bed(tmp_path)
    bed.conduct.prepare()
    moment, left = [0.0], [9, 8, 7]
    usual = bed.session.answer

    def monotonic() -> float:
        moment[0] += 0.5
        return moment[0]

    def answer(one: Any, op: str) -> dict[str, Any]:
        if op == "drain" and one.role == "server":
            left[:] = [0]
        found = usual(one, op)
        return {**found, "held": left.pop(0) if len(left) > 1 else left[0]}

    monkeypatch.setattr(drain.time, "monotonic", monotonic)
    monkeypatch.setattr(bed.session, "answer", answer)
    bed.conduct.drain()
    assert bed.conduct.found.resets_lost == 7
    assert [fields for op, fields in bed.session.asked if op == "drain"][1:] == [
        {"how": "rst", "rate": 0}
    ]
