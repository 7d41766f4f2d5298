"""The lab's virtual machines as data: names, addresses, ports and sizes.

Pure functions: nothing here reads or changes the machine.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.connlab_layout import HOST_NAME, LabError, check_name, mac_address

MEMORY_MIN_MIB = 256
"""Below this, the Debian kernel and systemd do not boot."""


@dataclass(frozen=True)
class Vm:
    """One virtual machine."""

    name: str
    port: int
    """Port of 127.0.0.1 that is forwarded to its sshd."""
    data: tuple[str, ...]
    """Addresses on the data plane, with prefix lengths."""
    memory_mib: int
    cpus: int
    macs: tuple[str, str]
    """MAC addresses of its management and its data interface."""


@dataclass(frozen=True)
class Fleet:
    """All virtual machines of a lab; their data links meet in the first one."""

    name: str
    vms: tuple[Vm, ...]
    management_interface: str
    data_interface: str
    boot_args: tuple[str, ...]


def lay_out(params: Mapping[str, Any]) -> Fleet:
    """Return the fleet that the module's parameters describe.

    :raises LabError: naming the field, the value and what was expected.
    """
    check_name(params["name"])
    prefixes = [_network(text) for text in params["data_prefixes"]]
    vms: list[Vm] = []
    for host in params["hosts"]:
        _check(host, vms)
        planes = (params["management_interface"], params["data_interface"])
        management, data = (mac_address(params["name"], host["name"], plane) for plane in planes)
        vms.append(
            Vm(
                name=host["name"],
                port=host["port"],
                data=tuple(_masked(host["name"], address, prefixes) for address in host["data"]),
                memory_mib=host["memory_mib"],
                cpus=host["cpus"],
                macs=(management, data),
            )
        )
    if not vms:
        raise LabError("hosts: got none, expected at least a server")
    return Fleet(
        params["name"],
        tuple(vms),
        params["management_interface"],
        params["data_interface"],
        tuple(params["boot_args"]),
    )


def _check(host: Mapping[str, Any], others: Iterable[Vm]) -> None:
    name = host["name"]
    if not HOST_NAME.fullmatch(name):
        raise LabError(f"host {name!r}: expected lower-case letters and digits")
    if not 1024 <= host["port"] <= 65535:
        raise LabError(f"host {name}: ansible_port: got {host['port']}, expected 1024 to 65535")
    if host["memory_mib"] < MEMORY_MIN_MIB:
        raise LabError(
            f"host {name}: lab_vm_memory_mib: got {host['memory_mib']}, expected at least "
            f"{MEMORY_MIN_MIB}"
        )
    if not 1 <= host["cpus"] <= 64:
        raise LabError(f"host {name}: lab_vm_cpus: got {host['cpus']}, expected 1 to 64")
    for other in others:
        if other.name == name:
            raise LabError(f"host {name}: listed twice, expected each host once")
        if twice := {address.split("/")[0] for address in other.data} & set(host["data"]):
            raise LabError(f"host {name}: address {min(twice)} already belongs to {other.name}")
        if other.port == host["port"]:
            raise LabError(
                f"host {name}: ansible_port {host['port']} already belongs to {other.name}"
            )


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as bad:
        raise LabError(f"lab_prefixes: got {text!r}, expected a network: {bad}") from None


def _masked(
    host: str,
    address: str,
    prefixes: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network],
) -> str:
    try:
        wanted = ipaddress.ip_address(address)
    except ValueError:
        raise LabError(f"host {host}: got {address!r}, expected an IP address") from None
    for network in prefixes:
        if wanted.version == network.version and wanted in network:
            return f"{wanted}/{network.prefixlen}"
    listed = ", ".join(map(str, prefixes))
    raise LabError(f"host {host}: address {address} is in none of the lab's prefixes ({listed})")
