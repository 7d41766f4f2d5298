"""Expand the alias addresses of a host, and check those of a whole lab."""

from __future__ import annotations

import importlib.util
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Adding more than this by the method address takes longer than a run; anyip adds one route.
MOST_ADDRESSES = 65_534
METHODS = ("address", "anyip")
FIELDS = (
    "lab_data_address",
    "lab_data_address6",
    "alias_ips_list",
    "alias_ips_count",
    "alias_ips_first",
    "alias_ips_first6",
    "alias_ips_prefix",
    "alias_ips_method",
)
# The lab's plan gives each host a /24 (RFC 4632). Of its 256 addresses 254 are usable, without the
# network and broadcast addresses.
BLOCK_BITS = 24


def _fence() -> Any:
    """Return the module bench/fence.py: filters run on the controller, in a checkout."""
    path = Path(__file__).resolve().parents[3] / "bench" / "fence.py"
    spec = importlib.util.spec_from_file_location("connlab_fence", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path}: cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FENCE = _fence()


class Wrong(ValueError):
    """An invalid field: its name, its value, and what was expected."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(f"{field}: {value!s}: expected {expected}")


def address(field: str, value: object) -> Address:
    """Return `value` as an address. Errors: Wrong."""
    try:
        return ipaddress.ip_address(str(value).strip())
    except ValueError:
        raise Wrong(field, value, "an IPv4 or IPv6 address") from None


def consecutive(field: str, first: Address, count: int) -> Iterator[Address]:
    """Yield `count` usable addresses of one block, starting with `first`.

    Errors: Wrong if they would go beyond the end of the /24 (IPv6: /64) of `first`.
    """
    bits = BLOCK_BITS if first.version == 4 else 64
    block = ipaddress.ip_network(f"{first}/{bits}", strict=False)
    last = int(block.broadcast_address) - (1 if first.version == 4 else 0)
    room = last - int(first) + 1
    if first == block.network_address or room < 1:
        raise Wrong(field, first, f"an address that is neither first nor last of {block}")
    if count > room:
        raise Wrong("alias_ips_count", count, f"at most {room}, from {first} to the end of {block}")
    yield from (first + offset for offset in range(count))


def prefix_addresses(prefix: Network) -> Iterator[Address]:
    """Yield a prefix's addresses without its network and broadcast addresses. Errors: Wrong."""
    if prefix.num_addresses - 2 > MOST_ADDRESSES:
        expected = f"at most {MOST_ADDRESSES} addresses (or alias_ips_method: anyip)"
        raise Wrong("alias_ips_prefix", prefix, expected)
    yield from prefix.hosts()


def read_prefix(field: str, value: object) -> Network:
    """Return `value` as a prefix. Errors: Wrong."""
    try:
        return ipaddress.ip_network(str(value).strip())
    except ValueError as error:
        raise Wrong(field, value, f"a prefix such as 198.18.1.0/24 ({error})") from None


def alias_ips_expand(fields: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the {"addresses", "routes"} that a host's alias_ips_* fields define.

    Errors: Wrong, naming field, value and what was expected.
    """
    method = str(fields.get("alias_ips_method") or "address")
    if method not in METHODS:
        raise Wrong("alias_ips_method", method, "address or anyip")
    found: list[tuple[str, Address]] = []
    listed = fields.get("alias_ips_list") or []
    if isinstance(listed, str) or not isinstance(listed, Sequence):
        raise Wrong("alias_ips_list", listed, "a list of addresses")
    for index, value in enumerate(listed):
        field = f"alias_ips_list[{index}]"
        found.append((field, address(field, value)))
    count_text = str(fields.get("alias_ips_count") or 0)
    if not (count_text.isascii() and count_text.isdigit()):
        raise Wrong("alias_ips_count", count_text, "a whole number from 0")
    for field in ("alias_ips_first", "alias_ips_first6"):
        if fields.get(field) and int(count_text):
            first = address(field, fields[field])
            found += [(field, each) for each in consecutive(field, first, int(count_text))]
    if int(count_text) and not (fields.get("alias_ips_first") or fields.get("alias_ips_first6")):
        raise Wrong("alias_ips_first", "nothing", "the first of alias_ips_count addresses")
    routes = []
    if fields.get("alias_ips_prefix"):
        prefix = read_prefix("alias_ips_prefix", fields["alias_ips_prefix"])
        if method == "anyip":
            if prefix.version == 6:
                # bind(2) requires a configured IPv6 address (inet6_bind(), af_inet6.c), and
                # neighbour discovery does not answer for a route.
                raise Wrong("alias_ips_prefix", prefix, "an IPv4 prefix with the method anyip")
            routes.append(str(prefix))
        else:
            found += [("alias_ips_prefix", each) for each in prefix_addresses(prefix)]
    elif method == "anyip":
        raise Wrong("alias_ips_prefix", "nothing", "a prefix, with the method anyip")
    seen: set[Address] = set()
    for field, each in found:
        if each in seen:
            raise Wrong(field, each, "an address that this host does not name twice")
        if each.is_multicast or each.is_unspecified or each.is_loopback:
            raise Wrong(field, each, "an address that one host can have")
        seen.add(each)
    return {"addresses": [str(each) for _, each in found], "routes": routes}


def outside(each: Network, allowed: Sequence[Network]) -> bool:
    """Return whether a prefix or address is not inside any of the allowed prefixes."""
    return not any(
        each.version == prefix.version and each.subnet_of(prefix)  # type: ignore[arg-type]
        for prefix in allowed
    )


def alias_ips_fields(host: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of a host that define its addresses."""
    return {name: host.get(name) for name in FIELDS}


def alias_ips_errors(
    hosts: Mapping[str, Mapping[str, Any]], prefixes: Sequence[Any], public: bool = False
) -> list[str]:
    """Return one line for each error in the addresses of a lab's hosts, none if all are valid.

    hosts: each host's lab_data_address, lab_data_address6 and alias_ips_* fields; prefixes: the
    only permitted prefixes; public: whether public addresses are permitted (bench/fence.py). Lines
    have the form "host: field: value: expected ...".
    """
    lines: list[str] = []
    allowed: list[Network] = []
    for index, value in enumerate(prefixes):
        try:
            allowed.append(read_prefix(f"lab_prefixes[{index}]", value))
        except Wrong as error:
            return [f"all hosts: {error}"]
    owners: dict[str, tuple[str, str]] = {}
    spans: list[tuple[Network, str]] = []
    for host, fields in hosts.items():
        mine: dict[str, str] = {}
        try:
            for field in ("lab_data_address", "lab_data_address6"):
                if fields.get(field):
                    mine[str(address(field, fields[field]))] = field
            expanded = alias_ips_expand(fields)
        except Wrong as error:
            lines.append(f"{host}: {error}")
            continue
        for each in expanded["addresses"]:
            mine.setdefault(each, "alias address")
        spans += [(ipaddress.ip_network(route), host) for route in expanded["routes"]]
        within = f"an address inside {', '.join(map(str, allowed))}"
        for each, field in mine.items():
            network = ipaddress.ip_network(each)
            if outside(network, allowed):
                lines.append(f"{host}: {field}: {each}: expected {within}")
            elif why := FENCE.refusal(ipaddress.ip_address(each), allowed, public=public):
                lines.append(
                    f"{host}: {field}: {each}: expected an address of the lab's own: {why}"
                )
            owner, its_field = owners.setdefault(each, (host, field))
            if owner != host:
                expected = f"an address that no other host has, it is {owner}'s {its_field}"
                lines.append(f"{host}: {field}: {each}: expected {expected}")
        for route in expanded["routes"]:
            if outside(ipaddress.ip_network(route), allowed):
                lines.append(f"{host}: alias_ips_prefix: {route}: expected {within}")
            elif why := FENCE.refusal_of_network(ipaddress.ip_network(route), public=public):
                expected = f"a prefix of the lab's own: {why}"
                lines.append(f"{host}: alias_ips_prefix: {route}: expected {expected}")
    for index, (span, host) in enumerate(spans):
        others = [(str(net), who) for net, who in spans[:index] if net.overlaps(span)]
        others += [
            (each, owner)
            for each, (owner, _) in owners.items()
            if owner != host and ipaddress.ip_address(each) in span
        ]
        lines += [
            f"{host}: alias_ips_prefix: {span}: expected no address of another host, "
            f"{each} is {who}'s"
            for each, who in others
            if who != host
        ]
    return lines


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "alias_ips_expand": alias_ips_expand,
            "alias_ips_fields": alias_ips_fields,
            "alias_ips_errors": alias_ips_errors,
        }
