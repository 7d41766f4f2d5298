"""Compute what a router translates, and check its variables."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

HIGHEST_PORT = 65_535
"""A port has 16 bits (RFC 9293, section 3.1)."""


class Wrong(ValueError):
    """An invalid field: its name, its value, and what was expected."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(f"{field}: {value!s}: expected {expected}")


def _list(field: str, value: Any) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise Wrong(field, value, "a list")
    return list(value)


def _number(field: str, value: Any, least: int, most: int) -> int:
    text = str(value).strip()
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise Wrong(field, value, f"a whole number from {least} to {most}")
    return int(text)


def _ports(value: Any) -> list[int]:
    words = str(value).strip().split("-")
    whole = all(word.isascii() and word.isdigit() for word in words)
    if not whole or len(words) != 2 or not 1 <= int(words[0]) <= int(words[1]) <= HIGHEST_PORT:
        expected = f"two ports as A-B, 1 to {HIGHEST_PORT}, A not above B"
        raise Wrong("nat_router_ports", value, expected)
    return [int(word) for word in words]


def _destinations(value: Any, prefixes: Sequence[Any], own: Sequence[str]) -> list[str]:
    allowed = [ipaddress.ip_network(str(each)) for each in prefixes]
    found: list[str] = []
    for index, text in enumerate(_list("nat_router_destinations", value)):
        field = f"nat_router_destinations[{index}]"
        try:
            network = ipaddress.IPv4Network(str(text).strip())
        except ValueError as error:
            raise Wrong(field, text, f"an IPv4 prefix such as 198.19.0.0/16 ({error})") from None
        inside = [each for each in allowed if isinstance(each, ipaddress.IPv4Network)]
        if not any(network.subnet_of(each) for each in inside):
            raise Wrong(field, network, f"a prefix inside {', '.join(map(str, inside))}")
        mine = [each for each in own if ipaddress.ip_address(each) in network]
        if mine:
            raise Wrong(field, network, f"a prefix without this router's own {mine[0]}")
        if str(network) in found:
            raise Wrong(field, network, "a prefix that is not named twice")
        found.append(str(network))
    if not found:
        raise Wrong("nat_router_destinations", "none", "at least one prefix")
    return found


def _addresses(value: Any, own: Sequence[str]) -> list[str]:
    found: list[str] = []
    for index, text in enumerate(_list("nat_router_addresses", value)):
        field = f"nat_router_addresses[{index}]"
        try:
            address = str(ipaddress.IPv4Address(str(text).strip()))
        except ValueError:
            raise Wrong(field, text, "an IPv4 address") from None
        if address not in own:
            have = ", ".join(own)
            raise Wrong(field, address, f"an address of this host, it has {have}")
        if address in found:
            raise Wrong(field, address, "an address that is not named twice")
        found.append(address)
    return found


def nat_router_own(expanded: Mapping[str, Sequence[str]], data_address: str) -> list[str]:
    """Return a host's own IPv4 addresses on the data plane, starting with its data address.

    expanded: the result of alias_ips_expand for the host.
    """
    every = dict.fromkeys([str(data_address), *expanded["addresses"]])
    return [each for each in every if ":" not in each]


def nat_router_translation(
    fields: Mapping[str, Any], own: Sequence[str], prefixes: Sequence[Any]
) -> dict[str, Any]:
    """Return {"destinations", "addresses", "ports": [first, last]} from a router's fields.

    fields: its nat_router_* variables; own: its IPv4 addresses on the data plane; prefixes: the
    lab's prefixes. Errors: AnsibleFilterError, naming field, value and what was expected.
    """
    try:
        count = _number("nat_router_address_count", fields["count"], 1, len(own))
        addresses = own[:count] if fields["addresses"] is None else fields["addresses"]
        if fields["established_timeout"] not in ("", None):
            most = 2**31 // 1000  # the kernel keeps it in an int, in jiffies of at least 1 ms
            _number("nat_router_established_timeout", fields["established_timeout"], 1, most)
        _number("nat_router_conntrack_max", fields["conntrack_max"], 1, 2**31 - 1)
        return {
            "destinations": _destinations(fields["destinations"], prefixes, own),
            "addresses": _addresses(addresses, own),
            "ports": _ports(fields["ports"]),
        }
    except Wrong as error:
        raise AnsibleFilterError(str(error)) from None


def nat_router_error(fields: Mapping[str, Any], own: Sequence[str], prefixes: Sequence[Any]) -> str:
    """Return the error in a router's fields in one line, or an empty string if there is none."""
    try:
        nat_router_translation(fields, own, prefixes)
    except AnsibleFilterError as error:
        return str(error)
    return ""


def nat_router_networks(destinations: Any, prefixes: Sequence[Any]) -> list[str]:
    """Return the destinations as ip(8) prints them, so that their routes can be found."""
    try:
        return _destinations(destinations, prefixes, ())
    except Wrong as error:
        raise AnsibleFilterError(str(error)) from None


def nat_router_networks_error(destinations: Any, prefixes: Sequence[Any]) -> str:
    """Return the error in the destinations in one line, or an empty string if there is none."""
    try:
        nat_router_networks(destinations, prefixes)
    except AnsibleFilterError as error:
        return str(error)
    return ""


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "nat_router_own": nat_router_own,
            "nat_router_translation": nat_router_translation,
            "nat_router_error": nat_router_error,
            "nat_router_networks": nat_router_networks,
            "nat_router_networks_error": nat_router_networks_error,
        }
