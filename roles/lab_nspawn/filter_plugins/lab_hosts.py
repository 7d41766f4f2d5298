"""Filter: the inventory's hosts in the form that the lab_nspawn module takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"lab_nspawn_hosts": lab_nspawn_hosts}


def lab_nspawn_hosts(
    wanted: list[str],
    groups: Mapping[str, list[str]],
    hostvars: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return name, management address and data addresses of the hosts of some inventory groups.

    :param wanted: names of groups; a group that is not in the inventory counts as empty.
    """
    names = dict.fromkeys(name for group in wanted for name in groups.get(group, []))
    return [
        {
            "name": name,
            "management": hostvars[name]["ansible_host"],
            "data": [
                hostvars[name][key]
                for key in ("lab_data_address", "lab_data_address6")
                if key in hostvars[name]
            ],
        }
        for name in names
    ]
