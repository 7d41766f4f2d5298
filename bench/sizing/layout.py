"""The addresses of the benchmarking prefix that each host of a fleet gets.

The role alias_ips takes addresses by count, inside the /24 of the first address, or by prefix. So
hosts that need few addresses share a /24 and get consecutive addresses of it. A host that needs
more addresses than a /24 has gets its own prefix.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

PREFIX = ipaddress.IPv4Network("198.18.0.0/15")
"""RFC 2544 appendix C.2.2: reserved for benchmarks of interconnected devices."""

USABLE = 254
"""Addresses of a /24 without its network and broadcast addresses."""

MOST = 65_534
"""Most addresses of one host: those of a /16, the largest prefix that alias_ips and the inventory
take."""

ROOM = PREFIX.num_addresses // 256
"""Number of /24 blocks in the prefix."""


@dataclass(frozen=True)
class Block:
    """The addresses of one host."""

    first: ipaddress.IPv4Address
    """The host's own address, on the interface before any tuning."""
    count: int
    prefix: ipaddress.IPv4Network | None
    """The prefix whose usable addresses they are; None if they are given by count."""


def granted(addresses: int) -> int:
    """Return how many addresses a host gets if it needs that many: above a /24, a whole prefix."""
    return addresses if addresses <= USABLE else (1 << (addresses + 1).bit_length()) - 2


def end(start: int, hosts: int, each: int) -> int:
    """Return the first free /24 of the prefix after hosts with ``each`` addresses."""
    if each <= USABLE:
        return start + -(-hosts // (USABLE // each))
    blocks = (granted(each) + 2) // 256
    return -(-start // blocks) * blocks + hosts * blocks


def blocks(start: int, hosts: int, each: int) -> Iterator[Block]:
    """Yield the addresses of each host, from the /24 number ``start`` of the prefix on."""
    if each <= USABLE:
        yield from (
            Block(PREFIX.network_address + offset, each, None)
            for offset in offsets(start * 256, hosts, each)
        )
        return
    size = granted(each) + 2
    first = -(-start * 256 // size) * size
    for number in range(hosts):
        base = PREFIX.network_address + first + number * size
        prefix = ipaddress.IPv4Network((base, 32 - (size.bit_length() - 1)))
        yield Block(base + 1, granted(each), prefix)


def offsets(start: int, hosts: int, each: int = 1) -> Iterator[int]:
    """Yield where the addresses of each host begin, without the first and last of each /24."""
    for number in range(hosts):
        block, place = divmod(number, USABLE // each)
        yield start + block * 256 + 1 + place * each
