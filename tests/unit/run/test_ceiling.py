"""The way to a ceiling, over a session that plays hosts with a limit."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bench.errors import LabError
from bench.run import ceiling
from bench.run.ceiling import Ceiling
from bench.run.curve import Progress, Recorder
from bench.scenario import Scenario

TRY_SECONDS = 1e-5
CHUNK = 50
"""Tries of a client between two looks of the controller."""


class Host:
    """An agent, and what it holds."""

    def __init__(self, world: World, name: str, planned: int = 0) -> None:
        self.world, self.name, self.planned = world, name, planned
        self.tried = self.held = self.lost = 0
        self.errors: dict[str, int] = {}
        self.order: dict[str, Any] = {}

    def tell(self, message: Mapping[str, Any]) -> None:
        self.order = dict(message)

    def fail(self, errno: str) -> None:
        self.errors[errno] = self.errors.get(errno, 0) + 1


class World:
    """Hosts with a limit, a clock that only they move, and the session that leads to them."""

    def __init__(self, *planned: int) -> None:
        self.clients = [Host(self, f"client{at}", share) for at, share in enumerate(planned)]
        self.server = Host(self, "server")
        self.now = 1000.0
        self.halted = False
        self.queued = 0
        self.queue = 0  # how many the kernel establishes without the server's accept(2)
        self.room = 1 << 60  # of the server
        self.rooms: dict[str, int] = {}  # of single clients
        self.accidents: set[int] = set()  # tries that fail for no lasting reason
        self.dead = False
        self.seconds = TRY_SECONDS
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.free_mib = 1 << 20

    # What a client finds.

    def attempt(self, client: Host) -> None:
        number = sum(one.tried for one in self.clients)
        client.tried += 1
        self.now += self.seconds
        if number in self.accidents:
            client.fail("ETIMEDOUT")
        elif client.held >= self.rooms.get(client.name, 1 << 60):
            client.fail("EMFILE")
        elif self.server.held < self.room:
            client.held += 1
            self.server.held += 1
            return
        elif self.queued < self.queue:
            self.server.fail("EMFILE")
            client.held += 1
            self.queued += 1
            return
        else:
            client.fail("ETIMEDOUT" if self.queue else "ENOSPC")
        client.lost += 1

    def ramp(self, client: Host, idle: Callable[[], None]) -> dict[str, Any]:
        self.halted = False
        upto, most, lost = client.order["upto"], client.order["most_lost"], client.lost
        assert client.tried <= upto <= client.planned
        while client.tried < upto and client.lost - lost < most and not self.dead:
            self.attempt(client)
            if not client.tried % CHUNK:
                idle()
                if self.halted:
                    break
        return {
            "reason": "halted" if self.halted else "complete",
            "tried": client.tried,
            "held": client.held,
            "lost": client.lost,
            "errors": dict(client.errors),
            "latency": {"5": client.held},
        }

    # The session.

    def tell(self, agents: Sequence[Any], op: str, **fields: Any) -> None:
        self.asked.append((op, fields))
        self.halted = self.halted or op == "halt"

    def gather(
        self, agents: Sequence[Any], event: str, seconds: float, idle: Callable[[], None]
    ) -> dict[Any, dict[str, Any]]:
        assert event == "ramped"
        found = {client: self.ramp(client, idle) for client in agents}
        idle()
        return found

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
        if op == "echo":
            return {client: {"dropped": self.drop(client)} for client in agents}
        return {one: {"held": one.held, "errors": dict(one.errors)} for one in agents}

    def drop(self, client: Host) -> int:
        """The clients' connections that nobody serves, taken from the last first."""
        gone = min(client.held, self.queued)
        client.held -= gone
        self.queued -= gone
        return gone

    def wait(self, seconds: float, idle: Callable[[], None] = lambda: None) -> None:
        self.now += seconds
        idle()

    # The run.

    def find(self, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Ceiling:
        total = sum(client.planned for client in self.clients)
        wanted = Scenario(
            name="t", title="t", expect="limit", **{"connections": total, "retries": 0, **fields}
        )
        self.notes: list[str] = []

        def show(now: Progress) -> None:
            if now.note:
                self.notes.append(f"{now.phase}: {now.note}")

        session: Any = self
        planned: Any = {client: client.planned for client in self.clients}
        servers: Any = [self.server]
        with monkeypatch.context() as patch:
            patch.setattr(ceiling.time, "monotonic", lambda: self.now)
            made = Ceiling(
                session,
                wanted,
                Recorder(total, io.StringIO(), show),
                planned,
                servers,
                lambda: sum(client.held for client in self.clients) >= self.free_mib,
            )
            self.ended = made.find()
        return made

    @property
    def held(self) -> int:
        return sum(client.held for client in self.clients)


shares = st.lists(st.integers(1, 4000), min_size=1, max_size=4)


@example([99], 1.0, 0.015625, 0.0625, 0)  # 1/64 of 99: a step is rounded up, never down
@given(shares, st.floats(0, 1.2), st.floats(0.01, 1), st.floats(0.001, 0.1), st.integers(0, 300))
def test_the_ceiling_is_within_its_resolution(
    planned: list[int], part: float, step: float, resolution: float, queue: int
) -> None:
    """A limit of the server: refused at once, or after a queue that nobody serves has filled."""
    world = World(*planned)
    total = sum(planned)
    world.room, world.queue = int(part * total), queue
    with pytest.MonkeyPatch.context() as patch:
        made = world.find(patch, step=step, resolution=resolution)
    limit = min(world.room, total)
    assert world.ended == ("complete" if world.room >= total else "limit")
    assert limit - max(len(planned), resolution * limit) <= made.steps[-1].held <= limit
    assert world.held == world.server.held == made.steps[-1].held
    goals = [one.goal for one in made.steps]
    assert goals == sorted(set(goals))
    assert goals[-1] <= total
    assert len(made.steps) <= 1 / step + 2 * ceiling.MOST_FAILURES + 2


@given(st.integers(1, 4), st.integers(100, 4000), st.data())
def test_the_first_client_to_reach_its_own_limit_ends_it(count: int, each: int, data: Any) -> None:
    world = World(*[each] * count)
    weakest = data.draw(st.sampled_from(world.clients))
    world.rooms[weakest.name] = data.draw(st.integers(0, each // 2))
    with pytest.MonkeyPatch.context() as patch:
        made = world.find(patch)
    assert world.ended == "limit"
    assert weakest.held == world.rooms[weakest.name]
    assert made.steps[-1].held == world.held
    assert made.steps[-1].errors["EMFILE"] > 0


def test_steps_are_shared_in_the_proportion_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(6000, 3000, 1000)
    made = world.find(monkeypatch, step=0.1)
    assert world.ended == "complete"
    assert [(one.goal, one.held, one.lost) for one in made.steps] == [
        (1000 * n, 1000 * n, 0) for n in range(1, 11)
    ]
    assert all(one.errors == {} for one in made.steps)
    assert made.latency == {5: 10_000}
    assert world.notes == []


def test_the_step_before_the_last_is_shared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(600, 300, 100)
    world.room = 500
    world.find(monkeypatch, step=0.5, max_in_flight=1)
    assert [client.held for client in world.clients] == [300, 150, 50]


def test_with_nothing_left_to_try_the_failing_step_was_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(1000, 1000)
    world.rooms["client0"] = 990
    made = world.find(monkeypatch, step=1.0)
    assert (world.ended, world.held, len(made.steps)) == ("limit", 1990, 1)


def test_a_limit_is_narrowed_from_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(100_000)
    world.room = 41_234
    made = world.find(monkeypatch, step=0.1, resolution=0.01)
    failing = [one for one in made.steps if one.lost]
    assert made.steps[-1] in failing
    assert len(failing) > 1
    assert [one.held for one in made.steps[:4]] == [10_000, 20_000, 30_000, 40_000]
    assert all(one.held == 41_234 for one in failing)
    assert failing[0].errors == {"ENOSPC": 256}
    assert world.notes[0] == "step: 10,000 more requested, 41,234 held, ENOSPC 256; halving"
    assert world.notes[-1].endswith("; that is the limit")
    assert len(world.notes) == len(failing)


def test_a_client_may_lose_twice_its_window_before_a_step_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for window, most in ((1, 64), (500, 1000)):
        world = World(50_000)
        world.room = 10_000
        made = world.find(monkeypatch, step=0.5, max_in_flight=window)
        assert made.steps[0].lost == most


def test_what_nobody_serves_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(5000, 5000)
    world.room, world.queue = 3000, 400
    made = world.find(monkeypatch, echo_timeout_ms=1234)
    assert world.ended == "limit"
    assert (world.held, world.server.held, world.queued) == (3000, 3000, 0)
    echoes = [fields for op, fields in world.asked if op == "echo"]
    assert echoes
    for fields in echoes:
        assert fields == {"mode": "fresh", "drop": True, "patience_ms": 1234}
    switched = [fields["on"] for op, fields in world.asked if op == "answer"]
    assert switched == [True, False] * len(echoes)
    assert made.steps[-1].errors["EMFILE"] > 0  # the server's own


def test_servers_that_accept_slowly_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(1000)
    usual, seen = world.ask, [0]

    def ask(agents: Sequence[Any], op: str, *rest: Any, **fields: Any) -> Any:
        found = usual(agents, op, *rest, **fields)
        if op == "status":  # ten more at each look
            seen[0] = min(seen[0] + 10, world.server.held)
            found[world.server]["held"] = seen[0]
        return found

    monkeypatch.setattr(world, "ask", ask)
    made = world.find(monkeypatch, step=0.25)
    assert world.ended == "complete"
    assert [one.held for one in made.steps] == [250, 500, 750, 1000]
    assert "echo" not in [op for op, _ in world.asked]


def test_an_accident_does_not_keep_the_steps_small(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(100_000)
    world.accidents = {3_000, 20_100, 20_200, 51_000}
    made = world.find(monkeypatch, step=0.05)
    assert (world.ended, made.steps[-1].held) == ("lost", 99_996)
    assert len(made.steps) < 40
    sizes = [one.goal - before.goal for before, one in pairwise(made.steps)]
    assert max(sizes) == sizes[-3] == 5000


def test_failures_that_never_end_are_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of fifty tries is lost however slowly one goes: what can be held so is found."""
    world = World(1_000_000)
    world.accidents = set(range(49, 1_000_000, 50))
    made = world.find(monkeypatch)
    assert world.ended == "limit"
    assert sum(bool(one.lost) for one in made.steps) <= ceiling.MOST_FAILURES
    assert world.held == made.steps[-1].held


def test_clients_that_try_nothing_do_not_hold_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(1_000_000)
    world.dead = True
    made = world.find(monkeypatch)
    assert (world.ended, made.steps[-1].held) == ("limit", 0)
    assert len(made.steps) <= ceiling.MOST_FAILURES


def test_the_memory_floor_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(5000, 5000)
    world.free_mib = 4321
    world.room, world.queue = 4300, 1000  # the servers have shut their door by then
    made = world.find(monkeypatch, step=0.2)
    assert world.ended == "memory"
    assert ("halt", {}) in world.asked
    assert world.held == world.server.held == made.steps[-1].held == 4300


def test_a_client_at_its_floor_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(5000)
    usual = world.ramp

    def ramp(client: Host, idle: Callable[[], None]) -> dict[str, Any]:
        found = usual(client, idle)
        return {**found, "reason": "memory"} if client.held >= 2000 else found

    monkeypatch.setattr(world, "ramp", ramp)
    made = world.find(monkeypatch, step=0.1)
    assert (world.ended, made.steps[-1].held) == ("memory", 2000)


def test_the_time_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(10_000)
    world.seconds = 0.01
    made = world.find(monkeypatch, ramp_timeout_seconds=30)
    assert world.ended == "timeout"
    assert 3000 <= made.steps[-1].held <= 3100
    assert world.held == world.server.held


def test_all_that_is_held_at_the_last_moment_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(10_000)
    world.free_mib = 10_000
    made = world.find(monkeypatch)
    assert (world.ended, made.steps[-1].held) == ("complete", 10_000)


def asked_for(world: World) -> list[int]:
    """What the steps that did not hold had asked for, one after the other."""
    told = [note.partition(" more requested")[0] for note in world.notes]
    return [int(text.removeprefix("step: ").replace(",", "")) for text in told]


def test_a_step_that_does_not_hold_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(4_000)
    world.room = 1_001
    made = world.find(monkeypatch, step=0.25, resolution=0.001, max_in_flight=2_000)
    assert (world.ended, made.steps[-1].held) == ("limit", 1_001)
    asked = asked_for(world)
    assert asked[0] == 1_000
    assert asked == [1_000, 500, 250, 125, 62, 31, 15, 7, 3, 1]


def test_steps_that_do_not_hold_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "MOST_FAILURES", 4)
    world = World(4_000)
    world.room = 1_001
    world.find(monkeypatch, step=0.25, resolution=0.001, max_in_flight=2_000)
    assert world.ended == "limit"
    assert asked_for(world) == [1_000, 500, 250, 125]
    assert [note.rpartition("; ")[2] for note in world.notes] == ["halving"] * 3 + [
        "that is the limit"
    ]


def test_a_step_holds_what_both_ends_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of what clients see established no server has, and resetting it finds none of them."""
    world = World(1_000)
    world.room, world.queue = 400, 30
    monkeypatch.setattr(world, "drop", lambda client: 0)
    made = world.find(monkeypatch, step=0.5)
    assert made.steps[0].goal == 500
    assert (made.steps[0].held, made.steps[0].lost) == (400, 100)


def test_what_is_found_meanwhile_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def strangers() -> None:
        raise LabError("the clients hold 9 connections more")

    monkeypatch.setattr(Ceiling.__init__, "__defaults__", (strangers,))
    with pytest.raises(LabError, match="9 connections more"):
        World(1_000).find(monkeypatch)


def test_errors_are_those_of_their_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(1_000)
    world.accidents = {10, 11, 12, 600}
    made = world.find(monkeypatch, step=0.25, resolution=1 / 1000)
    met = [one.errors.get("ETIMEDOUT", 0) for one in made.steps]
    assert sum(met) == world.clients[0].errors["ETIMEDOUT"] == 4
    assert met[0] == 3
