#!/usr/bin/python
"""Ansible module: add alias addresses to an interface, with a record for the revert."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.connlab_ip import Ip, dropin_path, not_lasting
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

DOCUMENTATION = r"""
module: connlab_alias
short_description: Add alias addresses or a local route to an interface, and remove them
description:
  - Adds the missing addresses and routes in one run of C(ip -batch), reads them back, and removes
    nothing that it did not add.
options:
  state:
    description: Whether the addresses and routes are added or removed.
    type: str
    choices: [present, absent]
    default: present
  interface:
    description: The interface.
    type: str
  addresses:
    description: Addresses that the interface has to have.
    type: list
    elements: str
    default: []
  routes:
    description: Prefixes that become local as a whole (method anyip).
    type: list
    elements: str
    default: []
  lab_name:
    description: Name of the lab, part of the name of the systemd-networkd drop-in.
    type: str
    default: connlab
  record:
    description: The JSON file that records the original state.
    type: path
    required: true
author: connlab
"""
EXAMPLES = r"""
- name: Add a second address to data0
  connlab_alias:
    interface: data0
    addresses: [198.18.1.2]
    record: /var/lib/connlab/alias_ips.json
"""
RETURN = r"""
reported:
  description: Settings that do not survive a reboot, with the reason.
  returned: state present
  type: dict
remarks:
  description: >-
    Settings that another user or program changed since the tune, and how each was handled; after
    a revert, the settings that the previous revert kept. Also shown as warnings.
  returned: always
  type: list
"""

ROLE = "alias_ips"


def bits(address: str) -> str:
    """Return an address as its single-address prefix."""
    return f"{address}/{ipaddress.ip_address(address).max_prefixlen}"


def dropin(lab_name: str, interface: str, addresses: list[str], routes: list[str]) -> str:
    """Return the systemd-networkd drop-in that brings aliases back at boot (systemd.network(5)).

    Each alias has its own section, with a prefix of 32 or 128 bits, so that no alias becomes a
    secondary address of another one, and none adds a route of its own.
    """
    parts = [
        f"# Lab {lab_name}: alias addresses of {interface}. Written by the role alias_ips,\n"
        "# reverted by playbooks/revert.yml.\n"
    ]
    for each in addresses:
        detection = "DuplicateAddressDetection=none\n" if ":" in each else ""
        parts.append(f"[Address]\nAddress={bits(each)}\n{detection}")
    for route in routes:
        parts.append(f"[Route]\nDestination={route}\nType=local\nTable=local\nScope=host\n")
    return "\n".join(parts)


def commands(add: Iterable[str], verb: str, interface: str) -> list[str]:
    """Return ip(8) commands that add or delete addresses.

    IPv6 addresses skip duplicate address detection, because no other host uses the lab's addresses.
    """
    return [
        f"address {verb} {bits(each)} dev {interface}"
        + (" nodad" if verb == "add" and ":" in each else "")
        for each in add
    ]


def route_commands(prefixes: Iterable[str], local: dict[str, list[str]]) -> list[str]:
    """Return ip(8) commands that delete local routes, wherever they are."""
    return [f"route del local {each} dev {dev}" for each in prefixes for dev in local[each]]


def listing(addresses: Iterable[str], routes: Iterable[str]) -> str:
    """Return addresses and routes one per line, for --diff."""
    return "".join(f"{each}\n" for each in [*addresses, *(f"local {r}" for r in routes)])


def strays(interface: str, added: Iterable[str], have: dict[str, str]) -> list[str]:
    """Return a line for each alias whose prefix length was changed since: it is kept."""
    return [
        f"{interface}: {have[each]} kept, changed since the tune (set {bits(each)}, found none)"
        for each in added
        if have.get(each, bits(each)) != bits(each)
    ]


def present(module: AnsibleModule, ip: Ip) -> dict[str, Any]:
    """Add what is missing, and remove what an earlier run added and is no longer wanted."""
    given = module.params
    interface = given["interface"]
    record = load_record(given["record"], ROLE)
    record["kept"] = []
    have, local = ip.addresses(interface), ip.routes()
    if "added" not in record:
        record.update(added=[], added_routes=[], interface=interface)
        record["settings"][interface] = {
            "found": " ".join(sorted(have.values())),
            "where": "host",
        }
    if record.get("interface", interface) != interface:
        raise ValueError(
            f"interface: wanted {interface}, found aliases on {record['interface']}: revert first"
        )
    added, added_routes = record["added"], record.get("added_routes", [])
    add = [each for each in given["addresses"] if each not in have]
    add_routes = [each for each in given["routes"] if each not in local]
    unwanted = [each for each in added if each not in given["addresses"]]
    said = [*strays(interface, unwanted, have)]
    drop = [each for each in unwanted if have.get(each) == bits(each)]
    drop_routes = [e for e in added_routes if e not in given["routes"] and e in local]
    files, record["reported"] = {}, {}
    path = dropin_path(interface, f"90-{given['lab_name']}")
    # Addresses that the interface had before belong to its own configuration, not to the lab.
    ours = [e for e in given["addresses"] if e not in have or e in added]
    our_routes = [e for e in given["routes"] if e not in local or e in added_routes]
    if path and (ours or our_routes):
        files[path] = dropin(given["lab_name"], interface, ours, our_routes)
    elif ours or our_routes:
        record["reported"]["persistence"] = not_lasting(interface, "aliases")
    before = listing(have.values(), local)
    said += changed_files(record, files)
    diffs = place_files(record, files, write=False)
    record.update(added=ours, added_routes=our_routes)
    if not module.check_mode:
        # From here on the record has everything that may have been added, for a revert.
        pending = {"added": [*ours, *drop], "added_routes": [*our_routes, *drop_routes]}
        save_record(given["record"], {**record, **pending})
        ip.batch(
            [
                *commands(drop, "del", interface),
                *route_commands(drop_routes, local),
                *commands(add, "add", interface),
                *(f"route add local {each} dev lo" for each in add_routes),
            ]
        )
        place_files(record, files, write=True)
        if add or drop or add_routes or drop_routes:
            have, local = ip.addresses(interface), ip.routes()
        missing = [each for each in given["addresses"] if each not in have]
        missing += [each for each in given["routes"] if each not in local]
        if missing:
            raise ValueError(f"{interface}: wanted {' '.join(missing)}, found {' '.join(have)}")
        setting = record["settings"].setdefault(interface, {"found": None, "where": "host"})
        setting["set"] = " ".join(
            [*sorted(have.values()), *(f"local {each}" for each in given["routes"])]
        )
        record["format"] = FORMAT
        save_record(given["record"], record)
    if add or drop or add_routes or drop_routes:
        after = {**{k: v for k, v in have.items() if k not in drop}, **{e: bits(e) for e in add}}
        routes = sorted((set(local) - set(drop_routes)) | set(add_routes))
        diffs.append(difference(interface, before, listing(after.values(), routes)))
    return {"changed": bool(diffs), "diff": diffs, "reported": record["reported"], "remarks": said}


def absent(module: AnsibleModule, ip: Ip) -> dict[str, Any]:
    """Remove what was added, restore the files, verify both, and remove the record."""
    given = module.params
    if not Path(given["record"]).exists():
        return {"changed": False, "diff": [], "remarks": []}
    record = load_record(given["record"], ROLE)
    interface = record.get("interface", "")
    links = {link["ifname"] for link in ip.json("link", "show")}
    have = ip.addresses(interface) if interface in links else {}
    local = ip.routes()
    added = record.get("added", [])
    kept = [*strays(interface, added, have), *changed_files(record, {})]
    drop = [each for each in added if have.get(each) == bits(each)]
    drop_routes = [each for each in record.get("added_routes", []) if each in local]
    diffs = restore_files(record, write=not module.check_mode)
    if drop or drop_routes:
        others = [value for key, value in have.items() if key not in drop]
        after = listing(others, sorted(set(local) - set(drop_routes)))
        diffs.append(difference(interface, listing(have.values(), sorted(local)), after))
    if not module.check_mode:
        ip.batch([*commands(drop, "del", interface), *route_commands(drop_routes, local)])
        left = [e for e in drop if e in ip.addresses(interface)] if drop else []
        left += [each for each in drop_routes if each in ip.routes()]
        left += [entry["after_header"] for entry in restore_files(record, write=False)]
        failed = [f"{interface}: not reverted: {' '.join(left)}"] if left else []
        kept = conclude(given["record"], record, kept, failed)
    return {"changed": True, "diff": diffs, "remarks": kept}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "interface": {"type": "str"},
            "addresses": {"type": "list", "elements": "str", "default": []},
            "routes": {"type": "list", "elements": "str", "default": []},
            "lab_name": {"type": "str", "default": "connlab"},
            "record": {"type": "path", "required": True},
        },
        required_if=[("state", "present", ["interface"])],
        supports_check_mode=True,
    )
    action = present if module.params["state"] == "present" else absent
    try:
        with host_lock(module):
            result = action(module, Ip(module))
    except (ValueError, OSError) as error:
        module.fail_json(msg=str(error))
    for line in result["remarks"]:
        module.warn(line)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
