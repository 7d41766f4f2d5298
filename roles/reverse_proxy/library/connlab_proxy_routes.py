#!/usr/bin/python
"""Ansible module: policy routing for the answers of transparent connections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.connlab_ip import Ip, dropin_path, not_lasting
from ansible.module_utils.connlab_policy_routes import (
    dropin,
    listing,
    misrouted,
    route_words,
    routes_there,
    rule_words,
    rules_there,
)
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
module: connlab_proxy_routes
short_description: Route the answers of transparent connections by their source port
description:
  - Adds routing rules and the route of their table, reads them back, and removes nothing that it
    did not add. Without rules it removes those of an earlier run.
options:
  state:
    description: Whether the rules and routes are added or removed.
    type: str
    choices: [present, absent]
    default: present
  rules:
    description: Rules, each with C(priority), C(table), C(from), C(sport) and C(iif).
    type: list
    elements: dict
    default: []
  routes:
    description: >-
      The route of the table, with C(table), C(dev) and C(via). If C(via) is empty, every address
      is local.
    type: list
    elements: dict
    default: []
  peers:
    description: Addresses whose packets arrive on the routes' interface.
    type: list
    elements: str
    default: []
  lab_name:
    description: Name of the lab, which is part of the systemd-networkd drop-in's name.
    type: str
    default: connlab
  record:
    description: The JSON file that records the additions.
    type: path
    required: true
author: connlab
"""
EXAMPLES = r"""
- name: Send a server's answers from port 5002 to the proxy
  connlab_proxy_routes:
    rules: [{priority: 5002, table: 5002, from: 198.18.0.1, sport: 5002, iif: ""}]
    routes: [{table: 5002, via: 198.18.211.1, dev: data0}]
    record: /var/lib/connlab/reverse_proxy_routes.json
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

ROLE = "reverse_proxy_routes"

TABLE = "reverse_proxy_table"


def find(ip: Ip, keys: Sequence[Sequence[int]]) -> tuple[list[str], list[str]]:
    """Return the existing rules and routes of these (priority, table) pairs."""
    priorities = {priority for priority, _ in keys}
    tables = {table for _, table in keys}
    return rules_there(ip, priorities, tables), routes_there(ip, tables)


def diff(before: tuple[list[str], list[str]], after: tuple[list[str], list[str]]) -> dict[str, str]:
    """Return the --diff entry of rules and routes."""
    return difference("policy routing", listing(*before), listing(*after))


def present(module: AnsibleModule, ip: Ip) -> dict[str, Any]:
    """Add what is missing, and remove what an earlier run added and is no longer wanted."""
    given = module.params
    record = load_record(given["record"], ROLE)
    record["kept"] = []
    rules = [rule_words(rule) for rule in given["rules"]]
    routes = [route_words(route) for route in given["routes"]]
    if not rules and "keys" not in record:
        return {"changed": False, "diff": [], "reported": {}, "remarks": []}
    wanted_keys = sorted({(rule["priority"], rule["table"]) for rule in given["rules"]})
    keys = sorted({*wanted_keys, *map(tuple, record.get("keys", []))})
    ours = [*record.get("rules", []), *record.get("routes", [])]
    strange = [each for found in find(ip, wanted_keys) for each in found if each not in ours]
    if strange:
        raise ValueError(
            f"{TABLE}: {wanted_keys[0][1]}: expected a table and a priority that nothing else "
            f"uses, found {strange[0]}"
        )
    # Another program may use a table that is no longer wanted.
    have_rules, have_routes = ([e for e in found if e in ours] for found in find(ip, keys))
    interface = given["routes"][0]["dev"] if routes else ""
    lines = misrouted(ip, interface, given["peers"]) if routes else []
    if lines:
        raise ValueError("; ".join(lines))
    # The route first: the kernel skips a rule with an empty table. The protocol is the same as
    # systemd-networkd's, so that the rules and routes that it adds at boot are identical.
    add = [f"route add {each} proto static" for each in routes if each not in have_routes]
    add += [f"rule add {each} protocol static" for each in rules if each not in have_rules]
    drop = [f"rule del {each}" for each in have_rules if each not in rules]
    drop += [f"route del {each}" for each in have_routes if each not in routes]
    record["reported"] = {}
    files = {}
    path = dropin_path(interface, f"91-{given['lab_name']}-proxy") if routes else None
    if path:
        files[path] = dropin(given["lab_name"], given["rules"], given["routes"])
    elif routes:
        record["reported"]["persistence"] = not_lasting(interface, "rules")
    said = changed_files(record, files)
    diffs = place_files(record, files, write=False)
    record.update(rules=rules, routes=routes, keys=list(map(list, wanted_keys)))
    if not module.check_mode:
        # From here on the record has everything that may have been added, for a revert.
        pending = {
            "rules": sorted({*rules, *have_rules}),
            "routes": sorted({*routes, *have_routes}),
            "keys": list(map(list, keys)),
        }
        save_record(given["record"], {**record, **pending})
        ip.batch([*drop, *add])
        place_files(record, files, write=True)
        if add or drop:
            have = [each for found in find(ip, keys) for each in found]
            missing = [each for each in [*rules, *routes] if each not in have]
            if missing:
                raise ValueError(f"wanted {missing[0]}, found {'; '.join(have) or 'nothing'}")
        record["format"] = FORMAT
        save_record(given["record"], record)
    if add or drop:
        diffs.append(diff((have_rules, have_routes), (rules, routes)))
    return {"changed": bool(diffs), "diff": diffs, "reported": record["reported"], "remarks": said}


def absent(module: AnsibleModule, ip: Ip) -> dict[str, Any]:
    """Remove what was added, restore the files, verify both, and remove the record."""
    path = module.params["record"]
    if not Path(path).exists():
        return {"changed": False, "diff": [], "remarks": []}
    record = load_record(path, ROLE)
    keys, ours = record.get("keys", []), {*record.get("rules", []), *record.get("routes", [])}

    def left() -> tuple[list[str], list[str]]:
        rules, routes = find(ip, keys)
        return [each for each in rules if each in ours], [each for each in routes if each in ours]

    kept = [
        f"{kind} {each}: kept, changed since the tune"
        for kind, found in zip(("rule", "route"), find(ip, keys))  # noqa: B905
        for each in found
        if each not in ours
    ]
    kept += changed_files(record, {})
    rules, routes = left()
    diffs = restore_files(record, write=not module.check_mode)
    if rules or routes:
        diffs.append(diff((rules, routes), ([], [])))
    if not module.check_mode:
        ip.batch([*(f"rule del {e}" for e in rules), *(f"route del {e}" for e in routes)])
        stay = listing(*left()).splitlines()
        stay += [entry["after_header"] for entry in restore_files(record, write=False)]
        failed = [f"{each}: still present after removal" for each in stay]
        kept = conclude(path, record, kept, failed)
    return {"changed": True, "diff": diffs, "remarks": kept}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "rules": {"type": "list", "elements": "dict", "default": []},
            "routes": {"type": "list", "elements": "dict", "default": []},
            "peers": {"type": "list", "elements": "str", "default": []},
            "lab_name": {"type": "str", "default": "connlab"},
            "record": {"type": "path", "required": True},
        },
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
