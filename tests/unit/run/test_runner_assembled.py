"""A run put together from what it has gathered, and the order in which it is closed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from runs import host

from bench.errors import LabError
from bench.inventory import Host, Inventory
from bench.plan.topology import Topology
from bench.results.format import Established, Run
from bench.results.store import Store
from bench.run import runner
from bench.run.phases import Evidence
from bench.scenario import Scenario

INVENTORY = Inventory(
    "test",
    "vm",
    {
        name: Host(name, (group,), name, 22, "lab", None, None, (address,))
        for name, group, address in (
            ("server1", "servers", "198.18.0.1"),
            ("client1", "clients", "198.18.1.1"),
            ("client2", "clients", "198.18.1.2"),
        )
    },
    False,
    None,
    None,
)
SCENARIO = Scenario(name="test", title="test", connections=900)


def gathered() -> Evidence:
    found = Evidence(
        peak=Established(clients=901, servers=900, ss=899),
        ramp_seconds=2.5,
        lost=3,
        errors={
            ("client", "client1"): {"ETIMEDOUT": 3, "ECONNREFUSED": 1},
            ("client", "client2"): {"ETIMEDOUT": 4},
        },
    )
    for name, group in (("server1", "servers"), ("client1", "clients"), ("client2", "clients")):
        found.hosts[name] = host(group)
    for name, workers, pss in (("server1", 1, 3_000), ("client1", 2, 4_000), ("client2", 4, 7_001)):
        before = found.hosts[name].phases["before"]
        found.hosts[name].phases["before"] = before.model_copy(
            update={"workers": workers, "pss_kib": pss}
        )
    return found


def assembled() -> Run:
    started = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
    return runner._assemble(Topology(SCENARIO, INVENTORY), gathered(), [], "run", started, None)


def test_errors_of_all_hosts_are_added_up() -> None:
    assert assembled().measured.errors == {"ECONNREFUSED": 1, "ETIMEDOUT": 7}


def test_the_rate_is_that_of_the_clients() -> None:
    measured = assembled().measured
    assert measured.ramp_seconds == 2.5
    assert measured.connections_per_second == pytest.approx(901 / 2.5)


def test_a_run_without_a_ramp_has_no_rate() -> None:
    found = gathered()
    found.ramp_seconds = 0.0
    started = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
    run = runner._assemble(
        Topology(SCENARIO, INVENTORY), found, [], "run", started, ("aborted", "why")
    )
    assert run.measured.connections_per_second == 0.0
    assert (run.verdict, run.reason) == ("aborted", "why")


def test_workers_are_counted_by_side_and_their_memory_is_that_of_one() -> None:
    workers = assembled().measured.workers
    assert (workers.server, workers.client) == (1, 6)
    assert workers.pss_kib_each == pytest.approx(14_001 / 7, abs=0.05)


class FakeSession:
    """Takes down how it was closed."""

    closed: list[bool]

    def __init__(self, *_: Any, **__: Any) -> None:
        self.agents: list[Any] = []
        FakeSession.closed = []

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def start(self, hosts: Any) -> None:
        pass

    def close(self, *, drained: bool = False) -> None:
        FakeSession.closed.append(drained)


@pytest.fixture
def led(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[BaseException | None], Store]:
    """A run whose phases end as they are told to."""
    monkeypatch.setattr(runner, "Session", FakeSession)
    monkeypatch.setattr(runner.page, "render", lambda run: "page")

    def run(ends: BaseException | None) -> Store:
        def phases(conduct: Any) -> None:
            conduct.found = gathered()
            if ends:
                raise ends

        monkeypatch.setattr(runner.Conduct, "all", phases)
        store = Store(tmp_path)
        connect: Any = None
        runner.run(SCENARIO, INVENTORY, store, connect, lambda now: None)
        return store

    return run


def test_a_drained_run_is_closed_in_any_order(led: Callable[[BaseException | None], Store]) -> None:
    led(None)
    assert FakeSession.closed == [True]


@pytest.mark.parametrize("ends", [KeyboardInterrupt(), LabError("host client1: gone")])
def test_one_that_holds_connections_is_closed_in_order(
    led: Callable[[BaseException | None], Store], tmp_path: Path, ends: BaseException
) -> None:
    with pytest.raises(type(ends), match=r"^$|^host client1: gone$"):
        led(ends)
    assert FakeSession.closed == [False]
    (run,) = Store(tmp_path).runs()
    assert run.verdict == "aborted"
    assert run.reason == (str(ends) or "interrupted")
    assert run.measured.lost == 3  # what there was is kept


@pytest.mark.parametrize("ends", [None, KeyboardInterrupt(), LabError("host client1: gone")])
def test_a_run_whose_figures_cannot_be_reckoned_is_kept_as_aborted(
    led: Callable[[BaseException | None], Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: BaseException | None,
) -> None:
    def fails(*_: Any) -> None:
        raise KeyError("Slab")

    monkeypatch.setattr(runner.cost, "kernel_bytes", fails)
    with pytest.raises(KeyError if ends is None else type(ends)):
        led(ends)
    assert FakeSession.closed == [ends is None]
    (run,) = Store(tmp_path).runs()
    assert run.verdict == "aborted"
    reason = "internal error: figures: KeyError: 'Slab'" if ends is None else str(ends)
    assert run.reason == (reason or "interrupted")
    assert (run.measured.lost, run.measured.established.clients) == (3, 901)
    assert set(run.hosts) == {"server1", "client1", "client2"}
    assert (tmp_path / run.run_id / "report.html").read_text() == "page"
