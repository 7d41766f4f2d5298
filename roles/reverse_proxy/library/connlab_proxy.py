#!/usr/bin/python
"""Ansible module: HAProxy as a number of equal processes, with a record and a way back."""

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
short_description: Run HAProxy as a number of equal processes, and take it away again
description:
  - Tells what this host has for a proxy (O(state=probe)), has haproxy check its configuration,
    places it, starts the processes and reads them back (O(state=present)), or stops them and
    restores the files found (O(state=absent)).
options:
  state:
    description: What to do.
    type: str
    choices: [probe, present, absent]
    default: present
  addresses:
    description: Addresses that the host is to have, for O(state=probe).
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
    description: How many processes there are to be.
    type: int
  maxconn:
    description: The connections that each has room for.
    type: int
  endpoints:
    description: The address:port that each listens on.
    type: list
    elements: str
    default: []
  reported:
    description: What falls short, each with the reason; recorded.
    type: dict
    default: {}
  record:
    description: The JSON file that keeps what was found.
    type: path
author: connlab
"""
EXAMPLES = r"""
- name: See what this host has for a proxy
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
  description: The largest that any limit of this host can be now (C(fs.nr_open)).
  returned: state probe
  type: int
missing:
  description: Addresses that are none of this host's.
  returned: state probe
  type: list
remarks:
  description: >-
    What somebody else has changed since, and what became of it; of a revert, what the one before
    has kept. Also shown as warnings.
  returned: state present or absent
  type: list
"""

ROLE = "reverse_proxy"
RUNTIME = Path("/run")


def stop(run: Run, unit: str, numbers: list[int]) -> None:
    """Stop processes, and forget that they were ever there."""
    units = names(unit, numbers)
    if units:
        checked(run, "systemctl", "disable", "--quiet", "--now", *units)
        run(["systemctl", "reset-failed", *units])


def states(unit: str, running: dict[int, bool]) -> str:
    """Return processes one per line, for --diff."""
    return "".join(f"{unit}@{number}.service\n" for number in sorted(running) if running[number])


def read_back(module: AnsibleModule, run: Run) -> None:
    """Wait until every process listens and answers. Errors: ProxyError with what does not."""
    given = module.params
    runtime = RUNTIME / given["runtime"]
    endpoints = set(given["endpoints"])
    prove(
        lambda: wrong(run, given["unit"], given["processes"], endpoints, given["maxconn"], runtime)
    )


def start(
    module: AnsibleModule, run: Run, record: Record, before: dict[int, bool], anew: bool
) -> None:
    """Place what has changed, start what is to run, and prove it; what fails does not stay up.

    :param anew: start what runs anew as well: it may not have read its files since they changed
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
    """Bring files and processes to what is wanted, prove it, and write the record."""
    given = module.params
    record = load_record(given["record"], ROLE)
    record["kept"] = []
    if os.access(HAPROXY, os.X_OK):
        check_config(run, given["text"])
    elif not module.check_mode:
        raise ProxyError(f"{HAPROXY}: not there: expected the package haproxy")
    before = instances(run, given["unit"])
    wanted = dict.fromkeys(range(1, given["processes"] + 1), True)
    files = {given["config"]: given["text"], **given["units"]}
    said = changed_files(record, files)
    diffs = place_files(record, files, write=False)
    # An earlier change ended between its files and its processes: they still have the old ones.
    pending = bool(record.get("pending"))
    if pending:
        diffs.append(difference("processes", "of an interrupted change\n", "started anew\n"))
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
        # Whatever happens from here on, a revert finds all that may have been placed or started.
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
    """Stop the processes, restore the files, prove both, and remove the record."""
    path = module.params["record"]
    if not Path(path).exists():
        return {"changed": False, "diff": [], "remarks": []}
    record = load_record(path, ROLE)
    # Without a name nothing was started: what is left is the word of the revert before.
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
            failed += [f"{name}: wanted gone, found there" for name in left]
        again = restore_files(record, write=False)
        failed += [f"{entry['after_header']}: wanted gone, found there" for entry in again]
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
