"""A scenario on an inventory: who connects from which addresses to which endpoints, how often."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from bench import facts
from bench.errors import LabError
from bench.inventory import Host, Inventory
from bench.results import HostRecord
from bench.scenario import Scenario
from bench.tuples import Plan, limit, plan
from bench.wire import Endpoint

Sources = Mapping[str, Sequence[str]]
"""Client name to its source addresses."""


def endpoints(host: Host, scenario: Scenario) -> list[Endpoint]:
    """What a server listens on."""
    return [(address, port) for address in host.data_addresses for port in scenario.server_ports]


def planned(inventory: Inventory) -> Sources:
    """The clients' addresses as the inventory has them."""
    return {host.name: host.data_addresses for host in inventory.of("clients")}


def there(inventory: Inventory, hosts: Mapping[str, HostRecord]) -> tuple[Sources, int]:
    """Of the clients' planned addresses, those that their hosts have; how many they have not.

    :raises LabError: if a server lacks an address that it should listen on.
    """
    networks = {name: facts.local_networks(host) for name, host in hosts.items()}

    def has(host: Host, address: str) -> bool:
        return any(ipaddress.ip_address(address) in network for network in networks[host.name])

    for server in inventory.of("servers"):
        for address in server.data_addresses:
            if not has(server, address):
                raise LabError(f"host {server.name}: address {address} is not on this host")
    found = {
        host.name: [one for one in host.data_addresses if has(host, one)]
        for host in inventory.of("clients")
    }
    wanted = sum(len(host.data_addresses) for host in inventory.of("clients"))
    return found, wanted - sum(map(len, found.values()))


def tuples(scenario: Scenario, inventory: Inventory, sources: Sources) -> int:
    """Connections that these addresses and the scenario's ports allow."""
    targets = _targets(scenario, inventory)
    return limit(sources, targets, scenario.first_client_port, scenario.last_client_port)


def plan_for(scenario: Scenario, inventory: Inventory, sources: Sources | None = None) -> Plan:
    """The tuples of a run. Where the aim is a limit, no more than there are.

    :param sources: by default those of the inventory.
    :raises InputError: if the addresses do not allow that many connections.
    """
    used = planned(inventory) if sources is None else sources
    wanted = scenario.connections
    if scenario.expect == "limit":
        wanted = max(1, min(wanted, tuples(scenario, inventory, used)))
    return plan(
        wanted,
        used,
        _targets(scenario, inventory),
        scenario.first_client_port,
        scenario.last_client_port,
    )


def _targets(scenario: Scenario, inventory: Inventory) -> list[Endpoint]:
    return [end for host in inventory.of("servers") for end in endpoints(host, scenario)]
