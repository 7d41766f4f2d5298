"""Each agent's part of a plan, over beds with odd numbers and more than one host a side."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from bench.inventory import Host, Inventory
from bench.plan import specs
from bench.plan.planning import plan_for
from bench.plan.topology import Topology
from bench.scenario import Scenario

NONCE = "00" * 16


def host(name: str, group: str, *addresses: str, routed: tuple[str, ...] = ()) -> Host:
    return Host(name, (group,), name, 22, "lab", None, None, addresses, routed)


HOSTS = [
    host("server1", "servers", "198.18.0.1", "198.19.0.1", routed=("198.19.0.1",)),
    host("server2", "servers", "198.18.0.2", "198.19.0.2", routed=("198.19.0.2",)),
    host("client1", "clients", "198.18.1.1"),
    host("client2", "clients", "198.18.1.2", "198.18.1.3"),
    host("client3", "clients", "198.18.1.4"),
    host("proxy1", "proxies", "198.18.2.1"),
    host("proxy2", "proxies", "198.18.2.2"),
    host("router1", "routers", "198.18.201.1", "198.18.201.2"),
]
INVENTORY = Inventory("test", "vm", {one.name: one for one in HOSTS}, False, None, None)


def made(**fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What servers and clients are told, by name."""
    usual = {"connections": 10_001, "clients": 3, "memory_floor_mib": 777}
    wanted = Scenario(name="test", title="test", **{**usual, **fields})
    plan = plan_for(Topology(wanted, INVENTORY))
    servers = {
        one.name: specs.server(Topology(wanted, INVENTORY), one, plan, NONCE)
        for one in INVENTORY.of("servers")
    }
    clients = {
        one.name: specs.client(Topology(wanted, INVENTORY), one, plan, NONCE)
        for one in INVENTORY.of("clients")
    }
    return servers, clients


def test_servers_have_room_for_what_comes_to_them() -> None:
    servers, clients = made()
    shares = [one["connections"] for one in servers.values()]
    assert sum(shares) == 10_001 and max(shares) - min(shares) <= 3
    opened = [sum(block["count"] for block in one["blocks"]) for one in clients.values()]
    assert sum(opened) == 10_001 and max(opened) - min(opened) <= 1


def test_behind_proxies_each_server_has_room_for_its_part_rounded_up() -> None:
    servers, _ = made(path="proxied", proxies=2)
    assert [one["connections"] for one in servers.values()] == [5_001, 5_001]
    for one in servers.values():
        assert one["fronts"] == [("198.18.2.1", 5000), ("198.18.2.2", 5000)]


def test_clients_are_told_what_the_lab_has_on_the_way() -> None:
    for one in made()[1].values():
        assert (one["fronts"], one["routers"]) == ([], [])
    for one in made(path="proxied", proxies=1)[1].values():
        assert one["fronts"] == [("198.18.2.1", 5000), ("198.18.2.1", 4999)]
        assert one["routers"] == []
    for one in made(path="routed")[1].values():
        assert (one["fronts"], one["routers"]) == ([], ["198.18.201.1", "198.18.201.2"])


def test_clients_share_the_rate() -> None:
    _, clients = made(connect_rate=300.0)
    assert sum(one["connect_rate"] for one in clients.values()) == pytest.approx(300.0)
    first = clients["client1"]
    opened = sum(block["count"] for block in first["blocks"])
    assert first["connect_rate"] == pytest.approx(float(Fraction(300 * opened, 10_001)))
    assert {one["connect_rate"] for one in made()[1].values()} == {0.0}


def test_floors_are_in_kib() -> None:
    servers, clients = made()
    for one in (*servers.values(), *clients.values()):
        assert one["memory_floor_kib"] == 777 * 1024


def test_each_side_has_its_own_number_of_workers() -> None:
    servers, clients = made(workers=3, server_workers=5)
    assert {one["workers"] for one in servers.values()} == {5}
    assert {one["workers"] for one in clients.values()} == {3}


def test_times_and_windows_are_those_of_the_scenario() -> None:
    _, clients = made(
        max_in_flight=77, connect_timeout_ms=1_234, retries=4, backoff_ms=55, active_workers=3
    )
    for one in clients.values():
        assert one["max_in_flight"] == 77
        assert (one["connect_timeout_ms"], one["backoff_ms"]) == (1_234, 55)
        assert (one["retries"], one["active"]) == (4, 3)
