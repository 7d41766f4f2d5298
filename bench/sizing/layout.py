"""Which addresses of the prefix for benchmarks each host of a fleet gets.

The role alias_ips takes addresses by count, inside the /24 of the first, or by prefix. So hosts
that need few share a /24, each with consecutive addresses of it; a host that needs more than a
/24 has gets a prefix of its own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

PREFIX = ipaddress.IPv4Network("198.18.0.0/15")
"""RFC 2544 appendix C.2.2: reserved for benchmarks of interconnected devices."""

USABLE = 254
"""Addresses of a /24 without its network and its broadcast address."""

MOST = 65_534
"""Addresses of one host: those of a /16, the largest prefix that alias_ips and the inventory
take."""

ROOM = PREFIX.num_addresses // 256
"""Blocks of a /24 in the prefix."""


@dataclass(frozen=True)
class Block:
    """The addresses of one host."""

    first: ipaddress.IPv4Address
    """Its own, on the interface before anything is tuned."""
    count: int
    prefix: ipaddress.IPv4Network | None
    """The prefix that they are all usable addresses of; None where they are given by count."""


def granted(addresses: int) -> int:
    """Addresses that a host gets where it needs so many: those of a prefix above a /24's."""
    return addresses if addresses <= USABLE else (1 << (addresses + 1).bit_length()) - 2


def end(start: int, hosts: int, each: int) -> int:
    """The first /24 of the prefix that is free again after hosts with ``each`` from ``start``."""
    if each <= USABLE:
        return start + -(-hosts // (USABLE // each))
    blocks = (granted(each) + 2) // 256
    return -(-start // blocks) * blocks + hosts * blocks


def blocks(start: int, hosts: int, each: int) -> Iterator[Block]:
    """The addresses of each host, from the /24 number ``start`` of the prefix on."""
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
    """Where the addresses of each host begin, none of them the first or last of a /24."""
    for number in range(hosts):
        block, place = divmod(number, USABLE // each)
        yield start + block * 256 + 1 + place * each
