"""The plan of addresses and ports: the four-tuple of every connection.

Four values identify a TCP connection (RFC 9293 section 3.3.1: local and remote address and port).
The plan gives every connection its own four-tuple before the first connection is opened, so the
kernel never has to search for a port.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.errors import InputError
from bench.units import plural
from bench.wire import Endpoint, TupleBlock


@dataclass(frozen=True)
class Plan:
    """Blocks of tuples by client, and the number of tuples that addresses and ports allow."""

    blocks: Mapping[str, Sequence[TupleBlock]]
    capacity: int
    """Number of tuples that the addresses and ports allow."""

    def share(self, client: str) -> int:
        """Return the number of connections that one client opens."""
        return sum(block["count"] for block in self.blocks[client])

    @property
    def pairs(self) -> int:
        """Number of pairs of a source and an endpoint with connections between them."""
        return sum(
            len({(block["source"], block["target"], block["target_port"]) for block in blocks})
            for blocks in self.blocks.values()
        )

    def held_by(self, endpoints: Sequence[Endpoint]) -> int:
        """Return the number of connections that end at the endpoints."""
        wanted = set(endpoints)
        return sum(
            block["count"]
            for blocks in self.blocks.values()
            for block in blocks
            if (block["target"], block["target_port"]) in wanted
        )


def fair(total: int, capacities: Sequence[int]) -> list[int]:
    """Split ``total`` as evenly as the capacities allow.

    If no part is full, the shares differ by at most one.

    :raises ValueError: if the capacities do not hold ``total``
    """
    if total > sum(capacities):
        raise ValueError(f"{total} does not fit into {sum(capacities)}")
    shares = [0] * len(capacities)
    # Fill from the smallest up: each part gets an even share of the rest, or all it can hold.
    order = sorted(range(len(capacities)), key=lambda index: (capacities[index], -index))
    left = total
    for position, index in enumerate(order):
        shares[index] = min(capacities[index], left // (len(order) - position))
        left -= shares[index]
    return shares


def limit(
    clients: Mapping[str, Sequence[str]],
    targets: Sequence[Endpoint],
    first_port: int,
    last_port: int,
) -> int:
    """Return how many tuples the addresses and ports allow; parameters as for :func:`plan`."""
    ports = last_port - first_port + 1
    return ports * sum(len(_pairs(sources, targets)) for sources in clients.values())


def plan(
    connections: int,
    clients: Mapping[str, Sequence[str]],
    targets: Sequence[Endpoint],
    first_port: int,
    last_port: int,
) -> Plan:
    """Plan exactly ``connections`` tuples, each used once, split evenly.

    :param clients: client name to its source addresses
    :param targets: server endpoints
    :raises InputError: if there are more connections than tuples
    """
    ports = last_port - first_port + 1
    pairs = {name: _pairs(sources, targets) for name, sources in clients.items()}
    capacities = [len(of_client) * ports for of_client in pairs.values()]
    if connections > sum(capacities):
        raise InputError(
            f"connections: got {connections}, expected at most the {sum(capacities)} tuples "
            f"planned ({_describe(clients, targets, ports)}); add client addresses, server ports "
            "or clients"
        )
    blocks: dict[str, list[TupleBlock]] = {}
    for (name, of_client), share in zip(pairs.items(), fair(connections, capacities), strict=True):
        blocks[name] = _blocks(of_client, share, first_port, ports)
    return Plan(blocks, sum(capacities))


def _pairs(sources: Sequence[str], targets: Sequence[Endpoint]) -> list[tuple[str, Endpoint]]:
    """Return every source with every target of the same address family, targets innermost."""
    family = {text: ipaddress.ip_address(text).version for text in sources}
    family.update({address: ipaddress.ip_address(address).version for address, _ in targets})
    return [
        (source, target)
        for source in sources
        for target in targets
        if family[source] == family[target[0]]
    ]


def _blocks(
    pairs: Sequence[tuple[str, Endpoint]], share: int, first_port: int, ports: int
) -> list[TupleBlock]:
    """Return the blocks of one client, evenly over its pairs.

    If a source has several targets, each target gets its own ports as long as they last, because
    two sockets bound to one address and port need SO_REUSEADDR (socket(7)).
    """
    next_port: dict[str, int] = {}
    blocks: list[TupleBlock] = []
    for (source, (target, target_port)), count in zip(
        pairs, fair(share, [ports] * len(pairs)), strict=True
    ):
        offset = next_port.get(source, 0)
        next_port[source] = (offset + count) % ports
        left = count
        while left:
            run = min(left, ports - offset)
            blocks.append(
                TupleBlock(
                    source=source,
                    first_port=first_port + offset,
                    count=run,
                    target=target,
                    target_port=target_port,
                )
            )
            offset, left = 0, left - run
    return blocks


def _describe(clients: Mapping[str, Sequence[str]], targets: Sequence[Endpoint], ports: int) -> str:
    addresses = sum(len(sources) for sources in clients.values())
    return (
        f"{plural(addresses, 'client address')} x {plural(ports, 'port')} x "
        f"{plural(len(targets), 'server endpoint')}"
    )
