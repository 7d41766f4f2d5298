"""The hosts and addresses of an inventory that a scenario uses, and its clients' targets.

========== =============================== ==================================
path       servers listen on               clients connect to
========== =============================== ==================================
direct     their own addresses             the same
routed     those behind a router           the same
proxied    their own addresses             the proxies' first addresses
========== =============================== ==================================
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from bench.errors import InputError
from bench.inventory import Host, Inventory
from bench.scenario import Scenario
from bench.wire import Endpoint

BUILD = {
    "routers": "ansible-playbook lab.yml -e lab_routers=1",
    "proxies": "ansible-playbook lab.yml -e lab_proxies=2",
}
"""Commands that build the hosts which an inventory of the lab's own hosts lacks."""

NEEDS = {"direct": None, "routed": "routers", "proxied": "proxies"}
"""Group of the hosts between clients and servers."""


def require(group: str, inventory: Inventory) -> None:
    """Check that a group has a host.

    :raises InputError: with the group and the command that builds it
    """
    if not inventory.of(group):
        raise InputError(
            f"inventory {inventory.source}: group {group}: empty, expected a host or more; to "
            f"build the lab's own hosts: {BUILD[group]}"
        )


@dataclass(frozen=True)
class Topology:
    """A scenario on an inventory. Each property is computed once, at its first use.

    Lists are in the order of the inventory; a host's endpoints are sorted by address, then by port.
    """

    scenario: Scenario
    inventory: Inventory

    def check(self) -> None:
        """Check that the inventory has the hosts and addresses that the scenario's path needs.

        :raises InputError: with the group and the command that builds it, or with the field
        """
        group = NEEDS[self.scenario.path]
        if group is not None:
            require(group, self.inventory)
        for host in self.servers:
            if not self.listening(host):
                raise InputError(
                    f"scenario {self.scenario.name}: path {self.scenario.path}: server "
                    f"{host.name} has no IPv{self.family} address for it, expected one in the "
                    f"inventory {self.inventory.source}"
                )

    @functools.cached_property
    def family(self) -> int:
        """IP version of the run, 4 or 6; ``auto``: that of the first server's first address."""
        if self.scenario.family != "auto":
            return self.scenario.family
        return ipaddress.ip_address(self.servers[0].data_addresses[0]).version

    @functools.cached_property
    def servers(self) -> list[Host]:
        """The server hosts: all of them take part."""
        return self.inventory.of("servers")

    @functools.cached_property
    def clients(self) -> list[Host]:
        """The client hosts that take part."""
        return self.inventory.of("clients")[: self.scenario.clients]

    @functools.cached_property
    def proxies(self) -> list[Host]:
        """The proxies that take part; none unless the path goes through them."""
        proxied = self.scenario.path == "proxied"
        return self.inventory.of("proxies")[: self.scenario.proxies] if proxied else []

    def sources(self, client: Host) -> list[str]:
        """Return the addresses that a client connects from."""
        return self._of_family(client.data_addresses)[: self.scenario.client_addresses]

    def listening(self, server: Host) -> list[str]:
        """Return the addresses that a server listens on."""
        if self.scenario.path == "routed":
            addresses: Iterable[str] = server.routed_addresses
        else:
            addresses = (a for a in server.data_addresses if a not in server.routed_addresses)
        return self._of_family(addresses)[: self.scenario.server_addresses]

    def endpoints(self, server: Host) -> list[Endpoint]:
        """Return the endpoints that a server listens on."""
        ports = self.scenario.server_ports
        return [(address, port) for address in self.listening(server) for port in ports]

    def fronting(self, proxy: Host) -> str:
        """Return the address of a proxy that clients connect to.

        :raises InputError: if the proxy has no address of the run's IP version
        """
        addresses = self._of_family(proxy.data_addresses)
        if not addresses:
            raise InputError(
                f"inventory {self.inventory.source}: host {proxy.name}: no IPv{self.family} "
                "address, expected one for clients to connect to"
            )
        return addresses[0]

    @functools.cached_property
    def targets(self) -> list[Endpoint]:
        """The endpoints that clients connect to."""
        if self.scenario.path == "proxied":
            fronts = map(self.fronting, self.proxies)
            return [(front, port) for front in fronts for port in self.scenario.server_ports]
        return [endpoint for server in self.servers for endpoint in self.endpoints(server)]

    @functools.cached_property
    def controls(self) -> list[Endpoint]:
        """The endpoints, through the path, where server agents prove that they are of this run."""
        if self.scenario.path == "proxied":
            addresses = [self.fronting(proxy) for proxy in self.proxies]
        else:
            addresses = [self.listening(server)[0] for server in self.servers]
        return [(address, self.scenario.control_port) for address in addresses]

    @functools.cached_property
    def fronts(self) -> list[Endpoint]:
        """The proxies' endpoints among those that clients connect to."""
        return [*self.targets, *self.controls] if self.scenario.path == "proxied" else []

    @functools.cached_property
    def translated(self) -> list[str]:
        """Addresses of routers in the path, which servers may see instead of the clients'.

        Routers translate only IPv4, to their own addresses (roles/nat_router).
        """
        if self.scenario.path != "routed" or self.family != 4:
            return []
        return [a for router in self.inventory.of("routers") for a in _of(4, router.data_addresses)]

    def _of_family(self, addresses: Iterable[str]) -> list[str]:
        return _of(self.family, addresses)


def _of(version: int, addresses: Iterable[str]) -> list[str]:
    return [address for address in addresses if ipaddress.ip_address(address).version == version]
