"""Both ends of a small experiment, and what the lab has between them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.claims import ends
from bench.inventory import Host, Inventory


def host(name: str, group: str, *addresses: str, routed: tuple[str, ...] = ()) -> Host:
    return Host(name, (group,), name, 22, "lab", None, None, addresses, routed)


HOSTS = {
    "server1": host("server1", "servers", "198.18.0.1", "198.19.0.1", routed=("198.19.0.1",)),
    "client1": host("client1", "clients", "198.18.1.1"),
    "router1": host("router1", "routers", "198.18.201.1"),
}


@pytest.mark.parametrize(
    ("path", "address", "routers"),
    [("direct", "198.18.0.1", ()), ("routed", "198.19.0.1", ("198.18.201.1",))],
)
def test_clients_know_the_routers_in_the_path(
    path: str, address: str, routers: tuple[str, ...]
) -> None:
    inventory = Inventory("test", "local", HOSTS, False, None, None, {"path": path})
    lab: Any = SimpleNamespace(
        inventory=inventory, server=HOSTS["server1"], client=HOSTS["client1"]
    )
    found = ends.between(lab)
    assert found.control == (address, 4999)
    assert found.client["routers"] == routers
    assert "routers" not in found.server
