"""Which of the inventory's hosts and addresses a scenario uses, and what its clients connect to.

========== =============================== ==================================
path       servers listen on               clients connect to
========== =============================== ==================================
direct     their own addresses             the same
routed     those behind a router           the same
proxied    their own addresses             the proxies' first addresses
========== =============================== ==================================
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from bench.errors import InputError
from bench.inventory import Host, Inventory
from bench.scenario import Scenario
from bench.wire import Endpoint

BUILD = {
    "routers": "ansible-playbook lab.yml -e lab_routers=1",
    "proxies": "ansible-playbook lab.yml -e lab_proxies=2",
}
"""What builds a topology that an inventory of the lab's own hosts lacks."""

NEEDS = {"direct": None, "routed": "routers", "proxied": "proxies"}
"""Group of the hosts between clients and servers."""


def check(scenario: Scenario, inventory: Inventory) -> None:
    """See that the inventory has what the scenario's path needs.

    :raises InputError: naming the group and the command that builds it, or the field.
    """
    group = NEEDS[scenario.path]
    if group is not None:
        require(group, inventory)
    for host in inventory.of("servers"):
        if not listening(scenario, inventory, host):
            raise InputError(
                f"scenario {scenario.name}: path {scenario.path}: server {host.name} has no IPv"
                f"{family(scenario, inventory)} address for it, expected one in the inventory "
                f"{inventory.source}"
            )


def require(group: str, inventory: Inventory) -> None:
    """See that a group has a host.

    :raises InputError: naming the group and the command that builds it.
    """
    if not inventory.of(group):
        raise InputError(
            f"inventory {inventory.source}: group {group}: empty, expected a host or more; the "
            f"lab's own hosts are built by {BUILD[group]}"
        )


def family(scenario: Scenario, inventory: Inventory) -> int:
    """IP version of the run: 4 or 6. ``auto`` is that of the first server's first address."""
    if scenario.family != "auto":
        return scenario.family
    return ipaddress.ip_address(inventory.of("servers")[0].data_addresses[0]).version


def clients(scenario: Scenario, inventory: Inventory) -> list[Host]:
    """The client hosts that take part; of the servers it is all of them."""
    return inventory.of("clients")[: scenario.clients]


def proxies(scenario: Scenario, inventory: Inventory) -> list[Host]:
    """The proxies that take part: none but on the path through them."""
    return inventory.of("proxies")[: scenario.proxies] if scenario.path == "proxied" else []


def sources(scenario: Scenario, inventory: Inventory, host: Host) -> list[str]:
    """Addresses that a client connects from."""
    return _of(family(scenario, inventory), host.data_addresses)[: scenario.client_addresses]


def listening(scenario: Scenario, inventory: Inventory, host: Host) -> list[str]:
    """Addresses that a server listens on."""
    if scenario.path == "routed":
        found: Iterable[str] = host.routed_addresses
    else:
        found = (one for one in host.data_addresses if one not in host.routed_addresses)
    return _of(family(scenario, inventory), found)[: scenario.server_addresses]


def endpoints(scenario: Scenario, inventory: Inventory, host: Host) -> list[Endpoint]:
    """What a server listens on."""
    return [
        (address, port)
        for address in listening(scenario, inventory, host)
        for port in scenario.server_ports
    ]


def targets(scenario: Scenario, inventory: Inventory) -> list[Endpoint]:
    """What clients connect to."""
    if scenario.path == "proxied":
        fronts = [fronting(scenario, inventory, one) for one in proxies(scenario, inventory)]
        return [(front, port) for front in fronts for port in scenario.server_ports]
    return [end for host in inventory.of("servers") for end in endpoints(scenario, inventory, host)]


def fronting(scenario: Scenario, inventory: Inventory, proxy: Host) -> str:
    """The address of a proxy that clients connect to.

    :raises InputError: if it has none of the run's IP version.
    """
    version = family(scenario, inventory)
    found = _of(version, proxy.data_addresses)
    if not found:
        raise InputError(
            f"inventory {inventory.source}: host {proxy.name}: no IPv{version} address, "
            "expected one for clients to connect to"
        )
    return found[0]


def controls(scenario: Scenario, inventory: Inventory) -> list[Endpoint]:
    """Where clients have a server agent prove that it is of this run: through the path."""
    if scenario.path == "proxied":
        ends = [fronting(scenario, inventory, one) for one in proxies(scenario, inventory)]
    else:
        ends = [listening(scenario, inventory, one)[0] for one in inventory.of("servers")]
    return [(address, scenario.control_port) for address in ends]


def fronts(scenario: Scenario, inventory: Inventory) -> list[Endpoint]:
    """Of what clients connect to, that which is a proxy's."""
    if scenario.path != "proxied":
        return []
    return [*targets(scenario, inventory), *controls(scenario, inventory)]


def translated(scenario: Scenario, inventory: Inventory) -> list[str]:
    """Addresses that servers may see in place of the clients': those of the routers in the path.

    Routers translate IPv4 alone, to addresses of their own (roles/nat_router).
    """
    if scenario.path != "routed" or family(scenario, inventory) != 4:
        return []
    return [one for host in inventory.of("routers") for one in _of(4, host.data_addresses)]


def _of(version: int, addresses: Iterable[str]) -> list[str]:
    return [one for one in addresses if ipaddress.ip_address(one).version == version]
