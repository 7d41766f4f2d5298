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
"""Directories beside the labs' own in the state directory."""

HOST_NAME = re.compile(r"[a-z][a-z0-9]{0,30}")
"""Without a dash, so that <lab>-<host> is split in one way only: a lab named connlab must not
take the hosts of one named connlab-test for its own."""


class LabError(Exception):
    """The lab cannot be made or removed as asked; the message says in one line why."""


@dataclass(frozen=True)
class Host:
    """One host: its name, and its interfaces' addresses with prefix lengths."""

    name: str
    management: str
    data: tuple[str, ...]


@dataclass(frozen=True)
class Lab:
    """A lab: names and addresses of all that is to be on the machine."""

    name: str
    hosts: tuple[Host, ...]
    controller: str
    """The machine's own management address, with the prefix length of a single address."""
    management_route: str
    """What the machine reaches through its leg: no more than the hosts' addresses need."""
    data_interface: str
    management_interface: str
    ehash: int
    """Buckets that each host's established-hash table must have at least; 0: as it comes."""

    @property
    def switch(self) -> str:
        """The namespace that holds the links between the hosts."""
        return f"{self.name}-switch"

    @property
    def controller_interface(self) -> str:
        """The machine's own leg on the management network."""
        return interface_name(self.name, "ctl")


def interface_name(lab: str, suffix: str) -> str:
    """An interface name for a lab in the machine's own namespace, of at most NAME_MAX bytes."""
    name = f"{lab}-{suffix}"
    if len(name) <= NAME_MAX:
        return name
    return f"lab{hashlib.sha256(lab.encode()).hexdigest()[:6]}-{suffix}"


def mac_address(lab: str, host: str, interface: str) -> str:
    """A locally administered unicast address that stays the same when a host is made anew."""
    digest = hashlib.sha256(f"{lab}/{host}/{interface}".encode()).digest()
    return ":".join(f"{octet:02x}" for octet in (0x02, *digest[:5]))


def ehash_entries(connections: int) -> int:
    """Buckets for a table of connections: the next power of two, within the kernel's bounds.

    The kernel rounds up to a power of two itself (inet_pernet_hashinfo_alloc in
    net/ipv4/inet_hashtables.c).
    """
    size = 1 << max(connections - 1, 1).bit_length()
    return max(EHASH_MIN, min(size, EHASH_MAX))


def check_name(name: str) -> None:
    """Refuse what is no name of a lab: a directory of that name is made, and removed.

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
    """The lab from the module's parameters.

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
                raise LabError(f"host {host}: address {plain} is also that of {seen[plain]}")
            seen[plain] = host
            addresses.append(address)
        if any(host == other.name for other in laid):
            raise LabError(f"host {host}: named twice")
        laid.append(Host(host, addresses[0], tuple(addresses[1:])))
    if not laid:
        raise LabError("hosts: got none, expected a server and a client or more")
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
    """The smallest part of the management prefix, a /26 at most, with all hosts' addresses.

    Narrow, because whatever else the machine reaches in that prefix it would reach no more: even
    addresses that nobody should route are in use somewhere.
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
    """Who uses a part of a management route already, or None.

    :param addresses: the machine's own, without prefix length, each with its interface.
    :param routes: destinations as ip(8) prints them, each with what the route is by.
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
    """What systemd-nspawn calls a host: also the name of its traces under /run/systemd/nspawn."""
    return f"{lab}-{host}"


def namespace(lab: str, host: str) -> str:
    """Name of a host's network namespace."""
    return f"{lab}-{host}"


def cgroup_name(lab: str, host: str) -> str:
    """Name of a host's cgroup, directly below the root of each hierarchy."""
    return f"{lab}-{host}.connlab"


def host_of(lab: str, name: str) -> str | None:
    """The host of a lab that a namespace or a cgroup of this name belongs to, or None."""
    prefix = f"{lab}-"
    host = name.removeprefix(prefix).removesuffix(".connlab")
    if name.startswith(prefix) and HOST_NAME.fullmatch(host) and host != "switch":
        return host
    return None
