"""Hosts, groups and addresses, read through ``ansible-inventory --list``.

The inventory is the only source of targets: clients connect to no host outside ``servers``.
Variables are read as literals; ``ansible-inventory`` does not template them (compose them with
the ``constructed`` inventory plugin instead).
"""

from __future__ import annotations

import ipaddress
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench import fence, names
from bench.errors import InputError, brief

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT = Path(__file__).resolve().parent.parent / "inventory" / "local"
DEFAULT_PREFIXES = ("198.18.0.0/15",)
"""RFC 2544 section C.2.2: reserved for benchmarking."""


class Allowed(NamedTuple):
    """The networks that a host's data addresses may be in."""

    prefixes: Sequence[Network]
    public: bool
    """Whether the inventory has :data:`bench.fence.WORD`."""


@dataclass(frozen=True)
class Host:
    """One host of the inventory."""

    name: str
    groups: tuple[str, ...]
    address: str
    port: int
    user: str
    key_file: str | None
    known_hosts: str | None
    data_addresses: tuple[str, ...]
    """The host's own address first; IPv4 before IPv6 if both are given by count."""
    routed_addresses: tuple[str, ...] = ()
    """Those of the data addresses that are reached only through a router."""
    public: bool = False
    """Whether the addresses may be public (:data:`bench.fence.WORD`)."""


@dataclass(frozen=True)
class Inventory:
    """The hosts that take part in a run, and the kind of lab."""

    source: str
    substrate: str
    hosts: Mapping[str, Host]
    underlay: bool
    """Whether the lab owns the machine underneath, whose kernel the hosts then share."""
    state: Path | None
    """Directory of the lab's own state, if the lab created the hosts."""
    connections: object
    """Number that the lab is sized for (``connections``); None if the inventory has none."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the scenario that these hosts override (``set``)."""

    def of(self, group: str) -> list[Host]:
        """Return the hosts of a group, in the inventory's order."""
        return [host for host in self.hosts.values() if group in host.groups]


def load(sources: Sequence[Path] = (DEFAULT,), extra_vars: Sequence[str] = ()) -> Inventory:
    """Read an inventory and check what a run needs.

    :param sources: files or directories, as for ansible's ``-i``
    :param extra_vars: texts for ansible-inventory's ``-e``
    :raises InputError: if it cannot be read, or a host, group or address is not as expected
    """
    for source in sources:
        if not source.exists():
            raise InputError(f"inventory: got {source}, expected a file or directory that exists")
    name = " ".join(str(source) for source in sources)
    return from_listing(name, _listing(name, sources, extra_vars))


def _listing(name: str, sources: Sequence[Path], extra_vars: Sequence[str]) -> Mapping[str, Any]:
    beside = Path(sys.executable).with_name("ansible-inventory")
    command = [str(beside) if beside.exists() else "ansible-inventory", "--list"]
    for source in sources:
        command += ["-i", str(source)]
    for text in extra_vars:
        command += ["-e", text]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = lines[-1] if lines else f"ansible-inventory exited {done.returncode}"
        raise InputError(f"inventory {name}: {said.strip()}")
    try:
        listing: Mapping[str, Any] = json.loads(done.stdout)
    except (ValueError, RecursionError) as error:
        raise InputError(f"inventory {name}: ansible-inventory: no JSON: {error}") from error
    return listing


def from_listing(source: str, listing: Mapping[str, Any]) -> Inventory:
    """Return the inventory in the output of ``ansible-inventory --list``.

    :raises InputError: if a host, group or address is not as expected
    """
    listing = _mapping(source, "the listing", _plain(listing))
    meta = _mapping(source, "_meta", listing.get("_meta", {}))
    variables = _mapping(source, "_meta.hostvars", meta.get("hostvars", {}))
    for name in variables:
        _mapping(source, f"host {name}", variables[name])
    groups: dict[str, list[str]] = {}
    for group in ("servers", "clients", "routers", "proxies"):
        for name in _members(source, listing, group):
            if not names.safe(name):
                raise InputError(
                    f"inventory {source}: host {brief(name)}: expected a name of {names.EXPECTED}"
                    " (its address can be in ansible_host)"
                )
            groups.setdefault(name, []).append(group)
    first: Mapping[str, Any] = next(iter(variables.values()), {})
    clients = sum("clients" in of_host for of_host in groups.values())
    wanted = first.get("lab_clients", clients)
    if str(wanted) != str(clients):  # it is text if it comes from the command line
        raise InputError(
            f"inventory {source}: lab_clients: got {wanted!r}, expected 1 to the number of clients "
            "that the inventory lists"
        )
    for group in ("servers", "clients"):
        if not any(group in of_host for of_host in groups.values()):
            raise InputError(f"inventory {source}: group {group}: empty, expected a host or more")
    for name, of_host in groups.items():
        if {"servers", "clients"} <= set(of_host):
            raise InputError(
                f"inventory {source}: host {name}: in servers and in clients, expected one of them"
            )
    hosts = {
        name: _host(source, name, tuple(of_host), variables.get(name, {}))
        for name, of_host in groups.items()
    }
    _check_addresses(source, hosts.values())
    first = variables.get(next(iter(hosts)), {})
    substrate = str(first.get("lab_substrate", "remote"))
    kind = ".vm" if substrate == "vm" else ""
    lab_dir, lab_name = str(first.get("lab_dir", "{{")), str(first.get("lab_name", "{{"))
    if "{{" not in lab_name and not names.safe(lab_name):
        raise InputError(
            f"inventory {source}: lab_name: got {brief(lab_name)}, expected a name of "
            f"{names.EXPECTED}"
        )
    return Inventory(
        source=source,
        substrate=substrate,
        hosts=hosts,
        underlay=bool(_members(source, listing, "underlay")),
        state=None if "{{" in lab_dir + lab_name else Path(lab_dir) / (lab_name + kind),
        connections=first.get("connections"),
        settings=_settings(first.get("set")),
    )


def _settings(found: Any) -> Mapping[str, Any]:
    """Return the overridden fields of a scenario; none if they have templates, which only Ansible
    can resolve."""
    if not isinstance(found, Mapping):
        return {}
    text = json.dumps(found, default=str)
    return {} if "{{" in text or "{%" in text else found


def _plain(value: Any) -> Any:
    """Return values without the mark that ansible-inventory puts on composed text."""
    if isinstance(value, Mapping):
        if set(value) == {"__ansible_unsafe"}:
            return value["__ansible_unsafe"]
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _mapping(source: str, what: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"inventory {source}: {what}: got {brief(value)}, expected a mapping")
    return value


def _members(source: str, listing: Mapping[str, Any], group: str) -> list[str]:
    """Return the hosts of a group and of the groups below it, each once."""
    found: dict[str, None] = {}
    left, seen = [group], {group}
    while left:
        name = left.pop(0)
        entry = _mapping(source, f"group {name}", listing.get(name, {}))
        for key in ("hosts", "children"):
            listed = entry.get(key, [])
            if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
                raise InputError(
                    f"inventory {source}: group {name}: {key}: got {brief(listed)}, "
                    "expected a list of names"
                )
        found |= dict.fromkeys(entry.get("hosts", []))
        below = [one for one in entry.get("children", []) if one not in seen]
        seen |= set(below)
        left = below + left
    return list(found)


def _host(source: str, name: str, groups: tuple[str, ...], found: Mapping[str, Any]) -> Host:
    where = f"inventory {source}: host {name}"

    def text(key: str) -> str | None:
        value = found.get(key)
        if value is None:
            return None
        if isinstance(value, Mapping | list) or not str(value).isprintable():
            raise InputError(f"{where}: {key}: got {brief(value)}, expected text in one line")
        if "{{" in str(value):
            raise InputError(f"{where}: {key}: got the template {value!r}, expected a literal")
        return str(value)

    def number(key: str, default: int, low: int, high: int) -> int:
        value = text(key) or str(default)
        if not re.fullmatch("[0-9]{1,9}", value) or not low <= int(value) <= high:
            raise InputError(f"{where}: {key}: got {brief(value)}, expected {low} to {high}")
        return int(value)

    allowed = Allowed(
        _prefixes(where, found.get("lab_prefixes", DEFAULT_PREFIXES)),
        _word(where, "lab_allow_public", found.get("lab_allow_public", False)),
    )
    listed = found.get("alias_ips_list", [])
    if isinstance(listed, str) or not isinstance(listed, Sequence):
        raise InputError(f"{where}: alias_ips_list: got {listed!r}, expected a list of addresses")
    own = text("lab_data_address")
    if own is None:
        raise InputError(f"{where}: lab_data_address: missing, expected an address of this host")
    addresses = [_address(where, "lab_data_address", own, allowed)]
    aliases = [_address(where, "alias_ips_list", str(item), allowed) for item in listed]
    if len(set(aliases)) != len(aliases):
        twice = next(item for item in aliases if aliases.count(item) > 1)
        raise InputError(f"{where}: alias_ips_list: got {twice} twice, expected each address once")
    first = text("alias_ips_first")
    if first is not None:
        start = _address(where, "alias_ips_first", first, allowed)
        for step in range(number("alias_ips_count", 0, 0, 65_536)):
            aliases.append(_address(where, "alias_ips_count", str(start + step), allowed))
    aliases += _counted6(where, text, number, allowed)
    block = text("alias_ips_prefix")
    if block is not None:
        try:
            network = ipaddress.ip_network(block)
        except ValueError:
            raise InputError(
                f"{where}: alias_ips_prefix: got {block!r}, expected a network, e.g. 198.18.1.0/28"
            ) from None
        if network.num_addresses > 65_536:
            raise InputError(
                f"{where}: alias_ips_prefix: got {block!r}, expected at most 65536 addresses"
            )
        aliases += [
            _address(where, "alias_ips_prefix", str(item), allowed) for item in network.hosts()
        ]
    routed = found.get("lab_routed_addresses", [])
    if isinstance(routed, str) or not isinstance(routed, Sequence):
        raise InputError(f"{where}: lab_routed_addresses: got {routed!r}, expected a list")
    behind = [_address(where, "lab_routed_addresses", str(item), allowed) for item in routed]
    addresses += [alias for alias in dict.fromkeys(aliases) if alias not in addresses]
    return Host(
        name=name,
        groups=groups,
        address=_reached(where, text("ansible_host") or name),
        port=number("ansible_port", 22, 1, 65_535),
        user=text("ansible_user") or "lab",
        key_file=text("ansible_ssh_private_key_file"),
        known_hosts=text("lab_known_hosts"),
        data_addresses=tuple(str(item) for item in addresses),
        routed_addresses=tuple(str(item) for item in behind),
        public=allowed.public,
    )


def _reached(where: str, address: str) -> str:
    """Return the address for SSH: an IP address, or a name that can be looked up."""
    try:
        address.encode("idna")  # as socket.getaddrinfo() does
    except UnicodeError:
        raise InputError(
            f"{where}: ansible_host: got {brief(address)}, expected an address or a host name"
        ) from None
    return address


def _counted6(
    where: str,
    text: Callable[[str], str | None],
    number: Callable[[str, int, int, int], int],
    allowed: Allowed,
) -> list[Address]:
    """Return a host's own IPv6 address and its addresses given by count."""
    found = []
    own, first = text("lab_data_address6"), text("alias_ips_first6")
    if own is not None:
        found.append(_address(where, "lab_data_address6", own, allowed))
    if first is not None:
        start = _address(where, "alias_ips_first6", first, allowed)
        for step in range(number("alias_ips_count", 0, 0, 65_536)):
            found.append(_address(where, "alias_ips_count", str(start + step), allowed))
    return found


def _word(where: str, field: str, value: object) -> bool:
    """Return a flag that lifts a guard: only true or false (``-e`` gives it as text)."""
    if str(value).lower() not in ("true", "false"):
        raise InputError(f"{where}: {field}: got {value!r}, expected true or false")
    return str(value).lower() == "true"


def _prefixes(where: str, listed: Any) -> list[Network]:
    if isinstance(listed, str) or not isinstance(listed, Sequence) or not listed:
        raise InputError(f"{where}: lab_prefixes: got {listed!r}, expected a list of networks")
    try:
        return [ipaddress.ip_network(str(item)) for item in listed]
    except ValueError as error:
        raise InputError(f"{where}: lab_prefixes: {error}, expected networks") from error


def _address(where: str, field: str, text: str, allowed: Allowed) -> Address:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise InputError(f"{where}: {field}: got {text!r}, expected an IP address") from None
    if not any(address in prefix for prefix in allowed.prefixes):
        within = ", ".join(str(prefix) for prefix in allowed.prefixes)
        raise InputError(f"{where}: {field}: got {address}, expected an address in {within}")
    if why := fence.refusal(address, allowed.prefixes, public=allowed.public):
        raise InputError(f"{where}: {field}: got {address}, {why}")
    return address


def _check_addresses(source: str, hosts: Iterable[Host]) -> None:
    owner: dict[str, str] = {}
    for host in hosts:
        for address in host.data_addresses:
            if address in owner:
                raise InputError(
                    f"inventory {source}: host {host.name}: address {address} overlaps host "
                    f"{owner[address]}, expected addresses of its own"
                )
            owner[address] = host.name
