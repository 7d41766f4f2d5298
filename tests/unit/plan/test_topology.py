from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.errors import InputError
from bench.inventory import Host, Inventory
from bench.plan import planning
from bench.plan.topology import Topology
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


def topology(**fields: Any) -> Topology:
    return Topology(scenario(**fields), LAB)


def without(*names: str) -> Inventory:
    return replace(LAB, hosts={n: one for n, one in LAB.hosts.items() if n not in names})


def test_a_server_listens_on_its_own_addresses_and_every_port() -> None:
    assert topology(server_ports=[5000, 5001]).endpoints(SERVER) == [
        ("198.18.0.1", 5000),
        ("198.18.0.1", 5001),
        ("198.18.0.2", 5000),
        ("198.18.0.2", 5001),
    ]
    assert topology(server_addresses=1).listening(SERVER) == ["198.18.0.1"]
    assert topology(family=6).listening(SERVER) == ["fd63:6f6e:6e6c::1"]


def test_behind_a_router_a_server_listens_where_the_router_leads() -> None:
    assert topology(path="routed").targets == [("198.19.0.1", 5000)]
    assert topology(path="routed").controls == [("198.19.0.1", 4999)]


def test_clients_connect_to_the_proxies_and_ask_through_them() -> None:
    proxied = scenario(path="proxied")
    assert Topology(proxied, LAB).targets == [("198.18.211.1", 5000), ("198.18.212.1", 5000)]
    assert Topology(proxied, LAB).controls == [("198.18.211.1", 4999), ("198.18.212.1", 4999)]
    assert Topology(proxied, LAB).endpoints(SERVER)[0] == ("198.18.0.1", 5000)
    assert topology(path="proxied", proxies=1).targets == [("198.18.211.1", 5000)]
    with pytest.raises(InputError, match="host proxy1: no IPv6 address"):
        planning.plan_for(topology(path="proxied", family=6))


def test_a_way_has_fronts_or_routers_or_nothing() -> None:
    assert (topology().fronts, topology().translated) == ([], [])
    routed, proxied = scenario(path="routed"), scenario(path="proxied", proxies=1)
    assert Topology(routed, LAB).fronts == []
    assert Topology(routed, LAB).translated == ["198.18.201.1"]
    assert topology(path="routed", family=6).translated == []  # none is translated
    assert Topology(proxied, LAB).fronts == [("198.18.211.1", 5000), ("198.18.211.1", 4999)]
    assert Topology(proxied, LAB).translated == []


def test_fewer_hosts_and_addresses_than_there_are() -> None:
    assert [one.name for one in topology(clients=1).clients] == ["client1"]
    assert len(topology().clients) == 2
    assert topology(client_addresses=1).sources(CLIENT) == ["198.18.1.1"]
    assert topology(family=6).sources(CLIENT) == ["fd63:6f6e:6e6c:1::1"]


def test_auto_is_the_version_of_the_servers_first_address() -> None:
    assert topology().family == 4
    six = replace(LAB, hosts={"server1": host("server1", "servers", "fd63:6f6e:6e6c::1")})
    assert Topology(scenario(), six).family == 6


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
        Topology(scenario(**fields), inventory).check()
    Topology(scenario(), inventory).check()
