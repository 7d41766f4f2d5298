#!/usr/bin/python
"""Ansible module: set up address translation and routes, with a record for the revert."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.module_utils import connlab_nat_parts as parts
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.connlab_ip import not_lasting
from ansible.module_utils.connlab_nat_files import route_files, router_files, unit_name
from ansible.module_utils.connlab_nat_parts import (
    CONNTRACK_MAX,
    Host,
    kept,
    lead,
    leave,
    parameters,
    put_back,
    refuse,
    remarks,
    stop,
    tables,
    translate,
)
from ansible.module_utils.connlab_nft import target
from ansible.module_utils.connlab_record import (
    FORMAT,
    changed_files,
    conclude,
    difference,
    host_lock,
    load_record,
    place_files,
    restore_files,
    save_record,
)
from ansible.module_utils.connlab_sysctl_tree import SysctlError, read_key

DOCUMENTATION = r"""
module: connlab_nat
short_description: Turn a host into a translating router, or route its traffic via one
description:
  - Replaces the nftables table C(inet connlab_nat) atomically, sets kernel parameters, adds routes
    and reads everything back, or restores the original state.
options:
  state:
    description: Whether the settings are made or reverted.
    type: str
    choices: [present, absent]
    default: present
  lab_name:
    description: Name of the lab, which is part of the names of its files.
    type: str
    default: connlab
  interface:
    description: The interface of the data plane.
    type: str
  translation:
    description:
      - C(destinations), C(addresses) (none to masquerade) and C(ports) (first and last) of a
        router; empty for a host that is not a router.
    type: dict
    default: {}
  sysctls:
    description: Kernel parameters of a router.
    type: dict
    default: {}
  conntrack:
    description: Number of connections that the router must be able to track.
    type: int
    default: 0
  routes:
    description: Gateways by destination.
    type: dict
    default: {}
  record:
    description: The JSON file that records the original state.
    type: path
    required: true
author: connlab
"""
EXAMPLES = r"""
- name: Translate connections to 198.19.0.0/16
  connlab_nat:
    interface: data0
    translation:
      destinations: [198.19.0.0/16]
      addresses: [198.18.201.1]
      ports: [1024, 65535]
    sysctls: {net.ipv4.ip_forward: "1"}
    record: /var/lib/connlab/nat_router.json

- name: Route 198.19.0.0/16 via the router
  connlab_nat:
    interface: data0
    routes: {198.19.0.0/16: 198.18.201.1}
    record: /var/lib/connlab/nat_router.json
"""
RETURN = r"""
reported:
  description: Settings that could not be made, with the reason.
  returned: state present
  type: dict
remarks:
  description: >-
    Settings that another user or program changed since the tune, and how each was handled; after
    a revert, the settings that the previous revert kept. Also shown as warnings.
  returned: always
  type: list
"""

ROLE = "nat_router"


def present(module: AnsibleModule, host: Host) -> dict[str, Any]:
    """Set rules, parameters, routes and files, verify them, and write the record."""
    given, write = module.params, not module.check_mode
    record = load_record(given["record"], ROLE)
    refuse(given, record, host)
    record.update(reported={}, kept=[])
    files: dict[str, str] = {}
    if given["translation"]:
        nft = host.nft()
        files = router_files(given["lab_name"], nft.path, given["translation"], given["sysctls"])
    if given["routes"]:
        lasting = route_files(given["lab_name"], given["interface"], given["routes"])
        files.update(lasting or {})
        if lasting is None:
            record["reported"]["persistence"] = not_lasting(given["interface"], "routes")
    name = unit_name(given["lab_name"]) if given["translation"] else ""
    said = [*remarks(given, record, host), *changed_files(record, files)]
    # Before its file is removed: a host that is no longer a router, or whose lab's name changed.
    diffs = stop(record, host, write) if record.get("unit", name) != name else []
    placed = place_files(record, files, write=False)
    if write and (placed or given["translation"] != record.get("translation", {})):
        # From here on the record has everything that may have been written or loaded, for a revert.
        known = [*tables(record), given["translation"]]
        record.update(unit=name, tables=[each for each in known if each])
        save_record(given["record"], record)
        place_files(record, files, write=True)
    diffs += placed
    diffs += translate(given, host, write)
    tuned, changed = parameters(given, record, write)
    diffs += tuned
    said += changed
    diffs += lead(given, record, host, write)
    if name and not host.systemctl("is-enabled", "--quiet", name):
        diffs.append(difference(name, "", "enabled\n"))
        if write and not host.systemctl("enable", "--quiet", name):
            raise ValueError(f"{name}: wanted enabled, found disabled")
    room = read_key(CONNTRACK_MAX, parts.ROOT)
    if given["translation"] and room is not None and int(room) < given["conntrack"]:
        record["reported"][CONNTRACK_MAX] = (
            f"wanted {given['conntrack']}, found {room}: tune_sysctl sets it, and "
            "tune_sysctl_extra overrides it"
        )
    record.update(unit=name, translation=given["translation"], routes=given["routes"])
    record.update(tables=[], gateways={}, format=FORMAT)
    shown = {f"route {to}": via for to, via in given["routes"].items()}
    if given["translation"]:
        to = target(given["translation"])
        shown.update({f"translate {prefix}": to for prefix in given["translation"]["destinations"]})
    record["settings"] = {
        **{key: entry for key, entry in record["settings"].items() if key in record["since"]},
        **{key: {"found": None, "set": value, "where": "host"} for key, value in shown.items()},
    }
    if write:
        save_record(given["record"], record)
    return {"changed": bool(diffs), "diff": diffs, "reported": record["reported"], "remarks": said}


def absent(module: AnsibleModule, host: Host) -> dict[str, Any]:
    """Restore the original state, verify it, and remove the record."""
    given, write = module.params, not module.check_mode
    if not Path(given["record"]).exists():
        return {"changed": False, "diff": [], "remarks": []}
    record = load_record(given["record"], ROLE)
    lines = [*kept(record, host), *changed_files(record, {})]
    diffs: list[dict[str, str]] = []
    failed = []

    def sysctls() -> list[dict[str, str]]:
        undone, changed = put_back(record, write, given["record"])
        lines.extend(changed)
        return undone

    # Each step by itself: a failure must not block the revert of the others.
    steps: list[Callable[[], list[dict[str, str]]]] = [
        lambda: leave(record, host, write),
        lambda: stop(record, host, write),
        sysctls,
        lambda: restore_files(record, write),
    ]
    for step in steps:
        try:
            diffs += step()
        except (SysctlError, ValueError, OSError) as error:
            failed.append(str(error))
    if write:
        if record.get("unit"):
            host.systemctl("daemon-reload")
        left = restore_files(record, write=False)
        failed += [entry["after_header"] + ": not restored" for entry in left]
        lines = conclude(given["record"], record, lines, failed)
    return {"changed": True, "diff": diffs, "remarks": lines}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "lab_name": {"type": "str", "default": "connlab"},
            "interface": {"type": "str"},
            "translation": {"type": "dict", "default": {}},
            "sysctls": {"type": "dict", "default": {}},
            "conntrack": {"type": "int", "default": 0},
            "routes": {"type": "dict", "default": {}},
            "record": {"type": "path", "required": True},
        },
        required_if=[("state", "present", ["interface"])],
        supports_check_mode=True,
    )
    given = module.params
    given["sysctls"] = {key: str(value) for key, value in given["sysctls"].items()}
    if given["translation"]:
        ports = [int(port) for port in given["translation"]["ports"]]
        given["translation"].update(interface=given["interface"], ports=ports)
    action = present if given["state"] == "present" else absent
    try:
        with host_lock(module):
            result = action(module, Host(module))
    except (SysctlError, ValueError, OSError) as error:
        module.fail_json(msg=str(error))
    for line in result["remarks"]:
        module.warn(line)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
