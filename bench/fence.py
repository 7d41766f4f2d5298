"""The fence: which addresses may carry a lab's connections, whatever ``lab_prefixes`` says.

A lab opens connections by the million. On private addresses a mistake in the inventory does no
harm; anywhere else it floods a stranger. So an address outside the networks listed below is
refused, even if ``lab_prefixes`` has it. Only ``lab_allow_public: true`` lets other unicast
addresses in. It does not let in addresses that belong to no host, addresses of the clouds' metadata
services, and IPv6 addresses that stand for an IPv4 address.

100.64.0.0/10 (RFC 6598) is not on the list: providers share it with their customers, and overlay
networks and clouds use it, so one of its addresses may well be another party's machine. Link-local
IPv4 is not on the list either: clouds have their metadata, time and name servers there.

This module uses the standard library alone, because the roles' filters use it too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import List, Optional, Tuple, Union

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

WORD = "lab_allow_public: true"

FREE = tuple(
    map(
        ipaddress.ip_network,
        (
            "10.0.0.0/8",  # private, RFC 1918
            "172.16.0.0/12",
            "192.168.0.0/16",
            "198.18.0.0/15",  # benchmarking, RFC 2544
            "127.0.0.0/8",  # loopback, RFC 1122
            "::1/128",
            "fc00::/7",  # unique local, RFC 4193
        ),
    )
)
"""Networks that a lab may use freely."""

NEVER = tuple(
    (ipaddress.ip_network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "no host's address (RFC 1122, this network)"),
        ("255.255.255.255/32", "the broadcast address (RFC 919)"),
        ("224.0.0.0/4", "a multicast address (RFC 5771)"),
        ("169.254.169.254/32", "a cloud's metadata service"),
        ("169.254.170.2/32", "a cloud's metadata service"),
        ("169.254.170.23/32", "a cloud's metadata service"),
        ("100.100.100.200/32", "a cloud's metadata service"),
        ("168.63.129.16/32", "a cloud's metadata service"),
        ("fd00:ec2::/32", "a cloud's metadata service"),
        ("fd20:ce::254/128", "a cloud's metadata service"),
        ("::/128", "no host's address (RFC 4291, unspecified)"),
        ("ff00::/8", "a multicast address (RFC 4291)"),
        ("::ffff:0:0/96", "an IPv4 address in IPv6 (RFC 4291, mapped)"),
        ("::/96", "an IPv4 address in IPv6 (RFC 4291, compatible)"),
        ("64:ff9b::/96", "an IPv4 address in IPv6 (RFC 6052, translated)"),
        ("64:ff9b:1::/48", "an IPv4 address in IPv6 (RFC 8215, translated)"),
        ("2002::/16", "an IPv4 address in IPv6 (RFC 3056, 6to4)"),
        ("2001::/32", "an IPv4 address in IPv6 (RFC 4380, Teredo)"),
    )
)
"""Networks that no setting lets in, and what they are."""

OTHERS = tuple(
    (ipaddress.ip_network(network), kind)
    for network, kind in (
        ("100.64.0.0/10", "a provider's shared address (RFC 6598)"),
        ("169.254.0.0/16", "a link-local address (RFC 3927)"),
        ("192.0.0.0/24", "an address for protocols (RFC 6890)"),
        ("192.0.2.0/24", "an address for documentation (RFC 5737)"),
        ("198.51.100.0/24", "an address for documentation (RFC 5737)"),
        ("203.0.113.0/24", "an address for documentation (RFC 5737)"),
        ("240.0.0.0/4", "a reserved address (RFC 1112)"),
        ("fe80::/10", "a link-local address (RFC 4291)"),
        ("fec0::/10", "a site-local address (RFC 3879)"),
        ("100::/64", "an address that discards (RFC 6666)"),
        ("2001:db8::/32", "an address for documentation (RFC 3849)"),
        ("3fff::/20", "an address for documentation (RFC 9637)"),
    )
)
"""Other networks that are not public, and what they are."""


Range = Tuple[int, int, int, str]
"""IP version, first and last address as numbers, what they are."""


def _ranges(networks: Iterable[Tuple[Network, str]]) -> List[Range]:
    return [
        (one.version, int(one.network_address), int(one.broadcast_address), kind)
        for one, kind in networks
    ]


_LOOPBACK6 = ipaddress.IPv6Address(1)
_FREE = _ranges((network, "") for network in FREE)
_NEVER = _ranges(NEVER)
_OTHERS = _ranges(OTHERS)


def refusal(address: Address, inside: Iterable[Network] = (), *, public: bool = False) -> str:
    """Return why an address may not carry a lab's connections; empty if it may.

    :param inside: the lab's networks: their first and last addresses belong to no host
    :param public: whether the inventory has :data:`WORD`
    """
    if getattr(address, "scope_id", None):
        return "an address of one link (RFC 4007, scoped), which no lab may use"
    never = _kind(address, _NEVER)
    if never is not None and address != _LOOPBACK6:
        return f"{never}, which no lab may use"
    for network in inside:
        why = _edge(address, network)
        if why:
            return why
    if public or _kind(address, _FREE) is not None:
        return ""
    return f"{_kind(address, _OTHERS) or 'a public address'}, which only {WORD} lets in"


def refusal_of_network(network: Network, *, public: bool = False) -> str:
    """Return why a whole network may not carry a lab's connections; empty if it may."""
    low, high = int(network.network_address), int(network.broadcast_address)
    for version, first, last, kind in _NEVER:
        if version == network.version and first <= high and low <= last:
            return f"a network with {kind}, which no lab may use"
    if public or any(
        version == network.version and first <= low and high <= last
        for version, first, last, _ in _FREE
    ):
        return ""
    return f"a network with public addresses, which only {WORD} lets in"


def _kind(address: Address, ranges: Iterable[Range]) -> Optional[str]:
    """Return the kind of the first range that contains an address; None if none does."""
    version, number = address.version, int(address)
    for its_version, low, high, kind in ranges:
        if low <= number <= high and version == its_version:
            return kind
    return None


def _edge(address: Address, network: Network) -> str:
    """Return what an address is if it is a network's first or last address and so belongs to no
    host (RFC 3021); empty otherwise."""
    if address.version != network.version or network.max_prefixlen - network.prefixlen < 2:
        return ""
    if address == network.network_address:
        kind = "network" if address.version == 4 else "routers' anycast (RFC 4291)"
        return f"the {kind} address of {network}"
    if address.version == 4 and address == network.broadcast_address:
        return f"the broadcast address of {network}"
    return ""
