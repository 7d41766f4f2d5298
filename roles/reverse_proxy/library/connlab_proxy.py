#!/usr/bin/python
"""Ansible module: run HAProxy as identical processes, with a record for the revert."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.connlab_proxy_host import HAPROXY, check_config, look
from ansible.module_utils.connlab_proxy_processes import (
    ProxyError,
    Run,
    cause,
    checked,
    instances,
    names,
    prove,
    wrong,
)
from ansible.module_utils.connlab_record import (
    FORMAT,
    Record,
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
module: connlab_proxy
short_description: Run HAProxy as a number of identical processes, and remove them
description:
  - Returns the host's limits and addresses for a proxy (O(state=probe)), or lets haproxy check its
    configuration, writes it, starts the processes and reads them back (O(state=present)), or stops
    them and restores the original files (O(state=absent)).
options:
  state:
    description: Whether the host is inspected, or the processes are started or removed.
    type: str
    choices: [probe, present, absent]
    default: present
  addresses:
    description: Addresses that the host needs, for O(state=probe).
    type: list
    elements: str
    default: []
  config:
    description: The configuration file of all processes.
    type: path
  text:
    description: Its text.
    type: str
    default: ""
  units:
    description: The unit template and its drop-ins, by path.
    type: dict
    default: {}
  unit:
    description: Name of the unit template.
    type: str
    default: connlab-proxy
  runtime:
    description: Directory of the processes' sockets, below /run.
    type: str
    default: connlab-proxy
  processes:
    description: Number of processes.
    type: int
  maxconn:
    description: Number of connections that each process has room for.
    type: int
  endpoints:
    description: The address:port pairs that each process listens on.
    type: list
    elements: str
    default: []
  reported:
    description: Values that are too small, each with the reason; written to the record.
    type: dict
    default: {}
  record:
    description: The JSON file that records the original state.
    type: path
author: connlab
"""
EXAMPLES = r"""
- name: Read the host's limits and addresses for a proxy
  connlab_proxy:
    state: probe
    addresses: [198.18.211.1]
"""
RETURN = r"""
nofile:
  description: The hard nofile limit that a service of this host can have.
  returned: state probe
  type: int
nr_open:
  description: The largest nofile limit on this host at present (C(fs.nr_open)).
  returned: state probe
  type: int
missing:
  description: Addresses that this host does not have.
  returned: state probe
  type: list
remarks:
  description: >-
    Settings that another user or program changed since the tune, and how each was handled; after
    a revert, the settings that the previous revert kept. Also shown as warnings.
  returned: state present or absent
  type: list
"""

ROLE = "reverse_proxy"
RUNTIME = Path("/run")


def stop(run: Run, unit: str, numbers: list[int]) -> None:
    """Stop and disable processes, and reset their failed state."""
    units = names(unit, numbers)
    if units:
        checked(run, "systemctl", "disable", "--quiet", "--now", *units)
        run(["systemctl", "reset-failed", *units])


def states(unit: str, running: dict[int, bool]) -> str:
    """Return the processes one per line, for --diff."""
    return "".join(f"{unit}@{number}.service\n" for number in sorted(running) if running[number])


def read_back(module: AnsibleModule, run: Run) -> None:
    """Wait until every process listens and answers. Errors: ProxyError naming one that does not."""
    given = module.params
    runtime = RUNTIME / given["runtime"]
    endpoints = set(given["endpoints"])
    prove(
        lambda: wrong(run, given["unit"], given["processes"], endpoints, given["maxconn"], runtime)
    )


def start(
    module: AnsibleModule, run: Run, record: Record, before: dict[int, bool], anew: bool
) -> None:
    """Write changed files, start the processes and verify them; stop them if that fails.

    :param anew: also restart running processes, which may not have read the changed files
    """
    given = module.params
    unit, wanted = given["unit"], list(range(1, given["processes"] + 1))
    changed = place_files(record, {given["config"]: given["text"], **given["units"]}, write=True)
    if changed or anew:
        checked(run, "systemctl", "daemon-reload")
    stop(run, unit, [number for number in before if number not in wanted])
    units = names(unit, wanted)
    try:
        checked(run, "systemctl", "enable", "--quiet", *units)
        checked(run, "systemctl", "restart" if changed or anew else "start", *units)
        read_back(module, run)
    except ProxyError as error:
        said = run(["journalctl", "--quiet", "-o", "cat", "-n", "20", "-u", f"{unit}@1"])[1]
        stop(run, unit, wanted)
        why = cause(said)
        raise ProxyError(f"{error}{': ' + why if why else ''}") from None


def present(module: AnsibleModule, run: Run) -> dict[str, Any]:
    """Write the files, start the processes, verify them, and write the record."""
    given = module.params
    record = load_record(given["record"], ROLE)
    record["kept"] = []
    if os.access(HAPROXY, os.X_OK):
        check_config(run, given["text"])
    elif not module.check_mode:
        raise ProxyError(f"{HAPROXY}: not installed: expected the package haproxy")
    before = instances(run, given["unit"])
    wanted = dict.fromkeys(range(1, given["processes"] + 1), True)
    files = {given["config"]: given["text"], **given["units"]}
    said = changed_files(record, files)
    diffs = place_files(record, files, write=False)
    # An interrupted change may have written files that the running processes have not read.
    pending = bool(record.get("pending"))
    if pending:
        diffs.append(difference("processes", "of an interrupted change\n", "restarted\n"))
    if before != wanted:
        diffs.append(
            difference("processes", states(given["unit"], before), states(given["unit"], wanted))
        )
    record["settings"] = {
        "processes": {"found": "0", "set": str(given["processes"]), "where": "host"},
        "maxconn": {"found": "0", "set": str(given["maxconn"]), "where": "host"},
    }
    record.update(unit=given["unit"], runtime=given["runtime"], reported=given["reported"])
    if not module.check_mode:
        # From here on the record has everything that may have been written or started.
        record["pending"] = bool(diffs)
        save_record(given["record"], record)
        if diffs:
            start(module, run, record, before, pending)
        else:
            read_back(module, run)
        record.update(pending=False, format=FORMAT)
        save_record(given["record"], record)
    return {"changed": bool(diffs), "diff": diffs, "reported": given["reported"], "remarks": said}


def absent(module: AnsibleModule, run: Run) -> dict[str, Any]:
    """Stop the processes, restore the files, verify both, and remove the record."""
    path = module.params["record"]
    if not Path(path).exists():
        return {"changed": False, "diff": [], "remarks": []}
    record = load_record(path, ROLE)
    # Without a unit nothing was started: the record has only the lines of the previous revert.
    unit, write = record.get("unit"), not module.check_mode
    before = instances(run, unit) if unit else {}
    kept = changed_files(record, {})
    if write and unit:
        stop(run, unit, list(before))
    diffs = restore_files(record, write)
    if unit and before:
        diffs.append(difference("processes", states(unit, before), ""))
    if write:
        failed = []
        if unit:
            checked(run, "systemctl", "daemon-reload")
            shutil.rmtree(RUNTIME / (record.get("runtime") or unit), ignore_errors=True)
            left = names(unit, instances(run, unit))
            failed += [f"{name}: still present after removal" for name in left]
        again = restore_files(record, write=False)
        failed += [f"{entry['after_header']}: not restored" for entry in again]
        kept = conclude(path, record, kept, failed)
    return {"changed": True, "diff": diffs, "remarks": kept}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["probe", "present", "absent"],
                "default": "present",
            },
            "addresses": {"type": "list", "elements": "str", "default": []},
            "config": {"type": "path"},
            "text": {"type": "str", "default": ""},
            "units": {"type": "dict", "default": {}},
            "unit": {"type": "str", "default": "connlab-proxy"},
            "runtime": {"type": "str", "default": "connlab-proxy"},
            "processes": {"type": "int"},
            "maxconn": {"type": "int"},
            "endpoints": {"type": "list", "elements": "str", "default": []},
            "reported": {"type": "dict", "default": {}},
            "record": {"type": "path"},
        },
        required_if=[
            ("state", "present", ["record", "config", "processes", "maxconn"]),
            ("state", "absent", ["record"]),
        ],
        supports_check_mode=True,
    )

    def run(words: list[str]) -> tuple[int, str, str]:
        code, out, err = module.run_command(words)
        return int(code), str(out), str(err)

    try:
        if module.params["state"] == "probe":
            result: dict[str, Any] = {"changed": False, **look(run, module.params["addresses"])}
        else:
            action = present if module.params["state"] == "present" else absent
            with host_lock(module):
                result = action(module, run)
    except (ProxyError, ValueError, OSError) as error:
        module.fail_json(msg=str(error))
    for line in result.get("remarks", []):
        module.warn(line)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
