from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.errors import InputError
from bench.inventory import Host, Inventory
from bench.plan import topology as paths
from bench.scenario import Scenario


def host(name: str, group: str, *addresses: str, routed: tuple[str, ...] = ()) -> Host:
    return Host(name, (group,), name, 22, "lab", None, None, addresses, routed)


LAB = Inventory(
    "test",
    "local",
    {
        one.name: one
        for one in (
            host(
                "server1",
                "servers",
                "198.18.0.1",
                "198.18.0.2",
                "198.19.0.1",
                "fd63:6f6e:6e6c::1",
                routed=("198.19.0.1",),
            ),
            host("client1", "clients", "198.18.1.1", "198.18.1.2", "fd63:6f6e:6e6c:1::1"),
            host("client2", "clients", "198.18.2.1"),
            host("router1", "routers", "198.18.201.1"),
            host("proxy1", "proxies", "198.18.211.1", "198.18.211.2"),
            host("proxy2", "proxies", "198.18.212.1"),
        )
    },
    False,
    None,
    None,
)
SERVER, CLIENT = LAB.hosts["server1"], LAB.hosts["client1"]


def scenario(**fields: Any) -> Scenario:
    return Scenario(name="test", title="test", **fields)


def without(*names: str) -> Inventory:
    return replace(LAB, hosts={n: one for n, one in LAB.hosts.items() if n not in names})


def test_a_server_listens_on_its_own_addresses_and_every_port() -> None:
    assert paths.endpoints(scenario(server_ports=[5000, 5001]), LAB, SERVER) == [
        ("198.18.0.1", 5000),
        ("198.18.0.1", 5001),
        ("198.18.0.2", 5000),
        ("198.18.0.2", 5001),
    ]
    assert paths.listening(scenario(server_addresses=1), LAB, SERVER) == ["198.18.0.1"]
    assert paths.listening(scenario(family=6), LAB, SERVER) == ["fd63:6f6e:6e6c::1"]


def test_behind_a_router_a_server_listens_where_the_router_leads() -> None:
    assert paths.targets(scenario(path="routed"), LAB) == [("198.19.0.1", 5000)]
    assert paths.controls(scenario(path="routed"), LAB) == [("198.19.0.1", 4999)]


def test_clients_connect_to_the_proxies_and_ask_through_them() -> None:
    proxied = scenario(path="proxied")
    assert paths.targets(proxied, LAB) == [("198.18.211.1", 5000), ("198.18.212.1", 5000)]
    assert paths.controls(proxied, LAB) == [("198.18.211.1", 4999), ("198.18.212.1", 4999)]
    assert paths.endpoints(proxied, LAB, SERVER)[0] == ("198.18.0.1", 5000)
    assert paths.targets(scenario(path="proxied", proxies=1), LAB) == [("198.18.211.1", 5000)]
    with pytest.raises(InputError, match="host proxy1: no IPv6 address"):
        paths.targets(scenario(path="proxied", family=6), LAB)


def test_a_way_has_fronts_or_routers_or_nothing() -> None:
    assert (paths.fronts(scenario(), LAB), paths.translated(scenario(), LAB)) == ([], [])
    routed, proxied = scenario(path="routed"), scenario(path="proxied", proxies=1)
    assert paths.fronts(routed, LAB) == []
    assert paths.translated(routed, LAB) == ["198.18.201.1"]
    assert paths.translated(scenario(path="routed", family=6), LAB) == []  # none is translated
    assert paths.fronts(proxied, LAB) == [("198.18.211.1", 5000), ("198.18.211.1", 4999)]
    assert paths.translated(proxied, LAB) == []


def test_fewer_hosts_and_addresses_than_there_are() -> None:
    assert [one.name for one in paths.clients(scenario(clients=1), LAB)] == ["client1"]
    assert len(paths.clients(scenario(), LAB)) == 2
    assert paths.sources(scenario(client_addresses=1), LAB, CLIENT) == ["198.18.1.1"]
    assert paths.sources(scenario(family=6), LAB, CLIENT) == ["fd63:6f6e:6e6c:1::1"]


def test_auto_is_the_version_of_the_servers_first_address() -> None:
    assert paths.family(scenario(), LAB) == 4
    six = replace(LAB, hosts={"server1": host("server1", "servers", "fd63:6f6e:6e6c::1")})
    assert paths.family(scenario(), six) == 6


@pytest.mark.parametrize(
    ("inventory", "fields", "line"),
    [
        (without("router1"), {"path": "routed"}, "group routers: empty, .* -e lab_routers=1"),
        (
            without("proxy1", "proxy2"),
            {"path": "proxied"},
            "group proxies: empty, .* -e lab_proxies=2",
        ),
        (LAB, {"path": "routed", "family": 6}, "path routed: server server1 has no IPv6 address"),
    ],
)
def test_what_the_inventory_lacks_is_named(
    inventory: Inventory, fields: dict[str, Any], line: str
) -> None:
    with pytest.raises(InputError, match=line):
        paths.check(scenario(**fields), inventory)
    paths.check(scenario(), inventory)
