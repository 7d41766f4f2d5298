"""Filters: the inventory's hosts in the form that the lab_vm module takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

THASH_MAX = 1 << 24
"""Maximum number of buckets, 128 MiB."""


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"lab_vm_hosts": lab_vm_hosts, "lab_vm_thash": lab_vm_thash}


def lab_vm_hosts(
    wanted: list[str],
    groups: Mapping[str, list[str]],
    hostvars: Mapping[str, Mapping[str, Any]],
    memory_mib: int,
    cpus: int,
) -> list[dict[str, Any]]:
    """Return name, port, size and data addresses of the hosts of some inventory groups.

    :param wanted: names of groups; a group that is not in the inventory counts as empty.
    :param memory_mib: memory of a host that does not set its own.
    :param cpus: processors of a host that does not set its own.
    """
    names = dict.fromkeys(name for group in wanted for name in groups.get(group, []))
    return [
        {
            "name": name,
            "port": hostvars[name].get("ansible_port", 22),
            "memory_mib": hostvars[name].get("lab_vm_memory_mib", memory_mib),
            "cpus": hostvars[name].get("lab_vm_cpus", cpus),
            "data": [
                hostvars[name][key]
                for key in ("lab_data_address", "lab_data_address6")
                if key in hostvars[name]
            ],
        }
        for name in names
    ]


def lab_vm_thash(connections: int) -> int:
    """Return the buckets of an established-hash table for `connections`: the next power of two.

    The kernel itself rounds thash_entries= up (tcp_init in net/ipv4/tcp.c).
    """
    return min(1 << max(connections - 1, 1).bit_length(), THASH_MAX)
