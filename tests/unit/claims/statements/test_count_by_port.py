from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from runs import host as record

from bench.claims.statements.count_by_port import (
    FIRST_PORT,
    CountFound,
    CountParameters,
    judge,
    measure,
)
from bench.hosts import count
from bench.inventory import Host, Inventory
from bench.plan import planning
from bench.plan.topology import Topology
from bench.results.format import HostRecord
from bench.scenario import Scenario


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({}, "confirmed"),
        ({"seconds": 5.1}, "depends"),
        ({"counted": 19_999}, "inconclusive"),
        ({"wrong_ports": 1}, "inconclusive"),
    ],
)
def test_the_number_and_the_time_decide(fields: dict[str, Any], verdict: str) -> None:
    usual: dict[str, Any] = {
        "held": 20_000,
        "counted": 20_000,
        "ports": 4,
        "wrong_ports": 0,
        "seconds": 0.04,
        "seconds_in_all": 0.8,
    }
    one = judge(CountFound(**{**usual, **fields}))
    assert one.verdict == verdict
    assert "of 20,000 connections on 4 ports counted in" in one.measured


def host(name: str, group: str, *addresses: str) -> Host:
    return Host(name, (group,), name, 22, "lab", None, None, addresses)


INVENTORY = Inventory(
    "test",
    "local",
    {
        "server1": host("server1", "servers", "198.18.0.1"),
        "client1": host("client1", "clients", "198.18.1.1"),
        "client2": host("client2", "clients", "198.18.2.1"),
    },
    False,
    None,
    None,
)


class Lab:
    """A lab whose second client lacks its address; the server counts what the run has opened."""

    inventory = INVENTORY
    server = INVENTORY.hosts["server1"]

    def __init__(self) -> None:
        self.hosts: dict[str, HostRecord] = {}
        for name, one in INVENTORY.hosts.items():
            self.hosts[name] = record(*one.groups)
            self.hosts[name].addresses = list(one.data_addresses)
        self.hosts["client2"].addresses = []

    def held(self, during: Callable[[], None], **fields: Any) -> Any:
        self.used = Scenario(name="claim", title="claim", **fields)
        there, missing = planning.there(Topology(self.used, INVENTORY), self.hosts)
        assert missing == 1
        self.plan = planning.plan_for(Topology(self.used, INVENTORY), there)
        during()
        return SimpleNamespace(
            config=self.used.model_dump(mode="json"),
            hosts=self.hosts,
            measured=SimpleNamespace(established=SimpleNamespace(ss=self.used.connections)),
        )

    def count(self, ports: str, by: str) -> count.Count:
        held = {
            str(port): self.plan.held_by([("198.18.0.1", port)]) for port in self.used.server_ports
        }
        return count.Count("server1", sum(held.values()), held, 0.01)


def test_what_is_expected_is_the_plan_of_the_addresses_that_are_there() -> None:
    lab: Any = Lab()
    wanted = CountParameters(connections=6, ports=4)
    found = measure(lab, wanted)
    assert (found.held, found.counted, found.wrong_ports) == (6, 6, 0)
    every = planning.plan_for(Topology(lab.used, INVENTORY))
    assert any(
        every.held_by([("198.18.0.1", port)]) != lab.plan.held_by([("198.18.0.1", port)])
        for port in range(FIRST_PORT, FIRST_PORT + 4)
    )
