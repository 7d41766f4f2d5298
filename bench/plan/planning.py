"""The plan of a scenario on an inventory: the number of connections from each client address to
each endpoint."""

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
from bench.units import plural

MOST_PAIRS = 100_000
"""Most pairs of client address and server endpoint in a run. All of them are proven before the
first connection: 20,000 pairs of one client took 6 s between namespaces on two busy cores. A
client's spec is one line with about 100 bytes for each pair."""

Sources = Mapping[str, Sequence[str]]
"""Client name to its source addresses."""


def planned(topology: Topology) -> Sources:
    """Return the clients' addresses as the inventory has them."""
    return {client.name: topology.sources(client) for client in topology.clients}


def there(topology: Topology, hosts: Mapping[str, HostRecord]) -> tuple[Sources, int]:
    """Return the clients' planned addresses that their hosts have, and the number of missing ones.

    :raises LabError: if a server lacks an address that it should listen on
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
    """Return the number of connections that these addresses and the scenario's ports allow."""
    ports = topology.scenario.first_client_port, topology.scenario.last_client_port
    return limit(sources, topology.targets, *ports)


def plan_for(topology: Topology, sources: Sources | None = None) -> Plan:
    """Return the tuples of a run; for a run that looks for its limit, at most all that exist.

    :param sources: client addresses; by default those of the inventory
    :raises InputError: if the addresses do not allow that many connections, if an address is
        refused, or if there are more pairs of addresses than can be proven
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
            f"endpoint, expected at most {MOST_PAIRS:,}, because each pair is proven before the "
            "first connection: set fewer client_addresses, server_addresses or server_ports"
        )
    return made


def _fence(topology: Topology) -> None:
    """Check that clients connect to no address that a lab may not use, wherever it comes from.

    :raises InputError: naming the address and the reason
    """
    public = any(host.public for host in topology.inventory.hosts.values())
    ends = {*topology.targets, *topology.controls}
    for text in sorted({address for address, _ in ends}):
        if why := fence.refusal(ipaddress.ip_address(text), public=public):
            raise InputError(f"inventory {topology.inventory.source}: target {text}: got {why}")


def plan_there(topology: Topology, hosts: Mapping[str, HostRecord]) -> Plan:
    """Return the same as :func:`plan_for`, for the addresses that the hosts really have.

    :raises LabError: if a server lacks an address that it should listen on
    :raises InputError: if the clients' addresses do not allow that many connections
    """
    sources, missing = there(topology, hosts)
    try:
        return plan_for(topology, sources)
    except InputError as error:
        if not missing:
            raise
        raise InputError(
            f"{error}; {plural(missing, 'planned client address')} on no host: tune for this many "
            "with ansible-playbook playbooks/tune.yml -e "
            f"connections={topology.scenario.connections}"
        ) from error
