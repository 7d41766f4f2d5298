"""A scenario on an inventory: who connects from which addresses to which endpoints, how often."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from bench import fence
from bench.errors import InputError, LabError
from bench.inventory import Host
from bench.plan.topology import Topology
from bench.plan.tuples import Plan, limit, plan
from bench.results import facts
from bench.results.format import HostRecord

MOST_PAIRS = 100_000
"""Pairs of client address and server endpoint that a run may have, all of which are proven before
the first connection: 20,000 took 6 s between namespaces on two cores that were busy otherwise, all
of them from one client. A client's spec has some 100 bytes for each, and is one line."""

Sources = Mapping[str, Sequence[str]]
"""Client name to its source addresses."""


def planned(topology: Topology) -> Sources:
    """The clients' addresses as the inventory has them."""
    return {client.name: topology.sources(client) for client in topology.clients}


def there(topology: Topology, hosts: Mapping[str, HostRecord]) -> tuple[Sources, int]:
    """Of the clients' planned addresses, those that their hosts have; how many they have not.

    :raises LabError: if a server lacks an address that it should listen on.
    """
    local = {name: facts.Local(host) for name, host in hosts.items()}

    def has(host: Host, address: str) -> bool:
        return ipaddress.ip_address(address) in local[host.name]

    for server in topology.servers:
        for address in topology.listening(server):
            if not has(server, address):
                raise LabError(f"host {server.name}: address {address} is not on this host")
    wanted = planned(topology)
    found = {
        name: [one for one in addresses if has(topology.inventory.hosts[name], one)]
        for name, addresses in wanted.items()
    }
    return found, sum(map(len, wanted.values())) - sum(map(len, found.values()))


def tuples(topology: Topology, sources: Sources) -> int:
    """Connections that these addresses and the scenario's ports allow."""
    ports = topology.scenario.first_client_port, topology.scenario.last_client_port
    return limit(sources, topology.targets, *ports)


def plan_for(topology: Topology, sources: Sources | None = None) -> Plan:
    """The tuples of a run. Where the aim is a limit, no more than there are.

    :param sources: by default those of the inventory.
    :raises InputError: if the addresses do not allow that many connections, one is refused, or
        there are more pairs of them than can be proven.
    """
    topology.check()
    _fence(topology)
    scenario = topology.scenario
    used = planned(topology) if sources is None else sources
    wanted = scenario.connections
    if scenario.expect == "limit":
        wanted = max(1, min(wanted, tuples(topology, used)))
    made = plan(
        wanted,
        used,
        topology.targets,
        scenario.first_client_port,
        scenario.last_client_port,
    )
    if made.pairs > MOST_PAIRS:
        raise InputError(
            f"scenario {scenario.name}: got {made.pairs:,} pairs of client address and server "
            f"endpoint, expected at most {MOST_PAIRS:,}, as each is proven before the first "
            "connection: set client_addresses, server_addresses or server_ports to fewer"
        )
    return made


def _fence(topology: Topology) -> None:
    """See that clients connect to no address that a lab may not use, whoever put it there.

    :raises InputError: naming the address and the reason
    """
    public = any(host.public for host in topology.inventory.hosts.values())
    ends = {*topology.targets, *topology.controls}
    for text in sorted({address for address, _ in ends}):
        if why := fence.refusal(ipaddress.ip_address(text), public=public):
            raise InputError(f"inventory {topology.inventory.source}: target {text}: got {why}")


def plan_there(topology: Topology, hosts: Mapping[str, HostRecord]) -> Plan:
    """The same over the addresses that the hosts really have.

    :raises LabError: if a server lacks an address that it should listen on.
    :raises InputError: if the clients' addresses do not allow that many connections.
    """
    sources, missing = there(topology, hosts)
    try:
        return plan_for(topology, sources)
    except InputError as error:
        if not missing:
            raise
        raise InputError(
            f"{error}; {missing} planned client addresses are on no host: tune for this many "
            "with ansible-playbook playbooks/tune.yml -e "
            f"connections={topology.scenario.connections}"
        ) from error
