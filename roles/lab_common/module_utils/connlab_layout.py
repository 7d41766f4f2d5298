"""The lab's hosts as data: names, addresses and the sizes of their tables.

Pure functions: nothing here reads or changes the machine.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass

EHASH_MIN = 2
EHASH_MAX = 16 * 1024 * 1024
"""Bounds of net.ipv4.tcp_child_ehash_entries: net/ipv4/sysctl_net_ipv4.c (Linux 6.1), where 0
means the machine's global table."""

NAME_MAX = 15
"""Bytes of an interface name: IFNAMSIZ - 1 (include/uapi/linux/if.h)."""

LAB_NAME = re.compile(r"[a-z][a-z0-9-]{0,23}")

NOT_LABS = ("cp", "image", "ssh")
"""Directories in the state directory that do not belong to one lab."""

HOST_NAME = re.compile(r"[a-z][a-z0-9]{0,30}")
"""Without a dash, so that <lab>-<host> can be split in only one way: a lab named connlab must not
mistake the hosts of a lab named connlab-test for its own."""


class LabError(Exception):
    """The lab cannot be created or removed; the message gives the reason in one line."""


@dataclass(frozen=True)
class Host:
    """One host: its name, and its interfaces' addresses with prefix lengths."""

    name: str
    management: str
    data: tuple[str, ...]


@dataclass(frozen=True)
class Lab:
    """A lab: the names and addresses of everything that it creates on the machine."""

    name: str
    hosts: tuple[Host, ...]
    controller: str
    """The machine's own management address, with the prefix length of a single address."""
    management_route: str
    """Destination of the route through the machine's own interface: just the hosts' addresses."""
    data_interface: str
    management_interface: str
    ehash: int
    """Minimum number of buckets of each host's established-hash table; 0: the kernel's default."""

    @property
    def switch(self) -> str:
        """Return the name of the namespace that holds the links between the hosts."""
        return f"{self.name}-switch"

    @property
    def controller_interface(self) -> str:
        """Return the name of the machine's own interface on the management network."""
        return interface_name(self.name, "ctl")


def interface_name(lab: str, suffix: str) -> str:
    """Return a lab's interface name in the machine's own namespace, of at most NAME_MAX bytes."""
    name = f"{lab}-{suffix}"
    if len(name) <= NAME_MAX:
        return name
    return f"lab{hashlib.sha256(lab.encode()).hexdigest()[:6]}-{suffix}"


def mac_address(lab: str, host: str, interface: str) -> str:
    """Return a locally administered unicast address, the same whenever a host is recreated."""
    digest = hashlib.sha256(f"{lab}/{host}/{interface}".encode()).digest()
    return ":".join(f"{octet:02x}" for octet in (0x02, *digest[:5]))


def ehash_entries(connections: int) -> int:
    """Return the buckets of a table of connections: a power of two within the kernel's bounds.

    The kernel itself rounds up to a power of two (inet_pernet_hashinfo_alloc in
    net/ipv4/inet_hashtables.c).
    """
    size = 1 << max(connections - 1, 1).bit_length()
    return max(EHASH_MIN, min(size, EHASH_MAX))


def check_name(name: str) -> None:
    """Refuse an invalid name of a lab: a directory of that name is created and removed.

    :raises LabError: naming the field, the value and what was expected.
    """
    if not LAB_NAME.fullmatch(name) or name in NOT_LABS:
        raise LabError(
            f"lab_name: got {name!r}, expected up to 24 lower-case letters, digits and dashes, "
            f"and none of {', '.join(NOT_LABS)}"
        )


def lay_out(
    name: str,
    hosts: list[dict[str, object]],
    management_prefix: str,
    data_prefixes: list[str],
    data_interface: str,
    management_interface: str,
    ehash: int,
) -> Lab:
    """Return the lab that the module's parameters describe.

    :param hosts: each with name, management (address) and data (addresses).
    :raises LabError: if a name or an address is not as expected.
    """
    check_name(name)
    management = _network("lab_mgmt_prefix", management_prefix)
    if management.version != 4 or management.prefixlen != 24:
        raise LabError(f"lab_mgmt_prefix: got {management_prefix}, expected an IPv4 /24")
    controller = str(management[254])
    prefixes = [_network("lab_prefixes", prefix) for prefix in data_prefixes]
    seen = {controller: "the controller"}
    laid: list[Host] = []
    for entry in hosts:
        host = str(entry["name"])
        if not HOST_NAME.fullmatch(host) or host == "switch":
            raise LabError(f"host {host!r}: expected a name of lower-case letters and digits")
        addresses = []
        data = entry["data"]
        assert isinstance(data, (list, tuple))
        for index, text in enumerate([entry["management"], *data]):
            address = _interface(host, str(text), prefixes if index else [management])
            plain = address.split("/")[0]
            if plain in seen:
                raise LabError(f"host {host}: address {plain} already belongs to {seen[plain]}")
            seen[plain] = host
            addresses.append(address)
        if any(host == other.name for other in laid):
            raise LabError(f"host {host}: listed twice")
        laid.append(Host(host, addresses[0], tuple(addresses[1:])))
    if not laid:
        raise LabError("hosts: got none, expected at least a server and a client")
    return Lab(
        name,
        tuple(laid),
        f"{controller}/32",
        management_route(management_prefix, [host.management.split("/")[0] for host in laid]),
        data_interface,
        management_interface,
        ehash,
    )


def management_route(prefix: str, addresses: list[str]) -> str:
    """Return the smallest part of the management prefix with all hosts' addresses, /26 or larger.

    It is narrow because the machine can no longer reach other machines in it: even addresses that
    should not be routed are in use somewhere.
    """
    network = ipaddress.IPv4Network(prefix)
    length = 26
    while length > network.prefixlen:
        part = ipaddress.IPv4Network((network.network_address, length))
        if all(ipaddress.IPv4Address(address) in part for address in addresses):
            return str(part)
        length -= 1
    return str(network)


def in_use(
    route: str, addresses: dict[str, str], routes: dict[str, str], resolv_conf: str
) -> str | None:
    """Return what already uses a part of a management route, or None.

    :param addresses: the machine's own, without prefix length, each with its interface.
    :param routes: destinations as ip(8) prints them, each with its interface or gateway.
    :param resolv_conf: text of resolv.conf(5).
    """
    network = ipaddress.IPv4Network(route)
    servers = dict.fromkeys(re.findall(r"^nameserver\s+(\S+)", resolv_conf, re.M), "resolv.conf")
    for table, what in ((addresses, "address"), (routes, "route"), (servers, "name server")):
        for text, where in table.items():
            try:
                other = ipaddress.ip_network(text, strict=False)
            except ValueError:  # "default", a scoped name server
                continue
            if isinstance(other, ipaddress.IPv4Network) and other.subnet_of(network):
                return f"{what} {text} ({where})"
    return None


def _network(what: str, text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as bad:
        raise LabError(f"{what}: got {text!r}: {bad}") from None


def _interface(
    host: str, text: str, allowed: list[ipaddress.IPv4Network | ipaddress.IPv6Network]
) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as bad:
        raise LabError(f"host {host}: {bad}") from None
    for network in allowed:
        if address in network:
            return f"{address}/{network.prefixlen}"
    wanted = ", ".join(str(network) for network in allowed)
    raise LabError(f"host {host}: address {address} is outside {wanted}")


def machine_name(lab: str, host: str) -> str:
    """Return systemd-nspawn's name of a host, also that of its files in /run/systemd/nspawn."""
    return f"{lab}-{host}"


def namespace(lab: str, host: str) -> str:
    """Return the name of a host's network namespace."""
    return f"{lab}-{host}"


def cgroup_name(lab: str, host: str) -> str:
    """Return the name of a host's cgroup, directly below the root of each hierarchy."""
    return f"{lab}-{host}.connlab"


def host_of(lab: str, name: str) -> str | None:
    """Return the host of a lab to which a namespace or a cgroup of this name belongs, or None."""
    prefix = f"{lab}-"
    host = name.removeprefix(prefix).removesuffix(".connlab")
    if name.startswith(prefix) and HOST_NAME.fullmatch(host) and host != "switch":
        return host
    return None
