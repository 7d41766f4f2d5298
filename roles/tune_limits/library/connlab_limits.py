#!/usr/bin/python
"""Ansible module: grant a nofile limit to logins and services, with a record for the revert."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.connlab_record import (
    FORMAT,
    changed_files,
    conclude,
    host_lock,
    load_record,
    place_files,
    restore_files,
    save_record,
)

DOCUMENTATION = r"""
module: connlab_limits
short_description: Grant a nofile limit to logins and services, and revoke it
description:
  - Returns the limits of the module's own session (O(state=probe)), writes the files that grant a
    limit (O(state=present)), or restores the original files (O(state=absent)).
options:
  state:
    description: Whether the limits are read, granted or restored.
    type: str
    choices: [probe, present, absent]
    default: present
  files:
    description: The files that grant the limits, by path.
    type: dict
    default: {}
  nofile:
    description: The hard limit that they grant.
    type: int
  wanted:
    description: The hard limit that the connections require.
    type: int
  found:
    description: The limits that a session had before, C(hard) and C(soft).
    type: dict
    default: {}
  nr_open:
    description: The planned fs.nr_open, in check mode.
    type: int
    default: 0
  reported:
    description: Limits that could not be granted, each with the reason; written to the record.
    type: dict
    default: {}
  record:
    description: The JSON file that records the original state.
    type: path
author: connlab
"""
EXAMPLES = r"""
- name: Read the limits of this session
  connlab_limits:
    state: probe
"""
RETURN = r"""
hard:
  description: The hard nofile limit of this session.
  returned: state probe
  type: int
soft:
  description: The soft nofile limit of this session.
  returned: state probe
  type: int
remarks:
  description: >-
    Settings that another user or program changed since the tune, and how each was handled; after
    a revert, the settings that the previous revert kept. Also shown as warnings.
  returned: state present or absent
  type: list
"""

ROLE = "tune_limits"


def field(text: str, name: str, column: int) -> str:
    """Return a word of the line that starts with `name`. Errors: ValueError without such a line."""
    for line in text.splitlines():
        if line.startswith(name):
            return line[len(name) :].split()[column]
    raise ValueError(f"no line {name!r}")


def number(limit: str) -> int:
    """Return a limit that proc(5) prints, as a number."""
    return 2**63 - 1 if limit == "unlimited" else int(limit)


def login_service() -> int:
    """Return the process whose limits a new login inherits: the ancestor just below PID 1."""
    pid = os.getpid()
    while True:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        parent = int(field(status, "PPid:", 0))
        if parent in (0, 1):
            return pid
        pid = parent


def look() -> dict[str, Any]:
    """Return the limits of this session, and what they could be raised to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A login is a child of sshd, which is a child of PID 1. Without CAP_SYS_RESOURCE each passes
    # on at most its own hard limit.
    hards = []
    for pid in (1, login_service()):
        try:
            limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
        except PermissionError:
            continue
        hards.append(number(field(limits, "Max open files", 1)))
    return {
        "soft": soft,
        "hard": hard,
        "bounding_set": field(Path("/proc/1/status").read_text(encoding="utf-8"), "CapBnd:", 0),
        "login_hard": min(hards, default=hard),
        "nr_open": int(Path("/proc/sys/fs/nr_open").read_text(encoding="ascii")),
    }


def reload_systemd(module: AnsibleModule, diffs: list[dict[str, str]]) -> None:
    """Make systemd reload its drop-ins, if one changed and systemd is running."""
    touched = any("/systemd/" in entry["before_header"] + entry["after_header"] for entry in diffs)
    if touched and Path("/run/systemd/system").is_dir():
        module.run_command(["systemctl", "daemon-reload"], check_rc=True)


def present(module: AnsibleModule) -> dict[str, Any]:
    """Write the files and the record."""
    given = module.params
    write = not module.check_mode
    nr_open = int(Path("/proc/sys/fs/nr_open").read_text(encoding="ascii"))
    if given["nofile"] > (nr_open if write else max(nr_open, given["nr_open"])):
        raise ValueError(
            f"nofile: wanted {given['nofile']}, found fs.nr_open {nr_open}: "
            "a hard limit above it locks out every login"
        )
    record = load_record(given["record"], ROLE)
    record["kept"] = []
    said = changed_files(record, given["files"])
    diffs = place_files(record, given["files"], write=False)
    for kind, found in given["found"].items():
        entry = record["settings"].setdefault(
            f"nofile.{kind}", {"found": str(found), "where": "host"}
        )
        entry.update(set=str(given["nofile"]), wanted=str(given["wanted"]))
    record["reported"] = given["reported"]
    if write:
        save_record(given["record"], record)
        place_files(record, given["files"], write=True)
        reload_systemd(module, diffs)
        record["format"] = FORMAT
        save_record(given["record"], record)
    return {"changed": bool(diffs), "diff": diffs, "remarks": said}


def absent(module: AnsibleModule) -> dict[str, Any]:
    """Restore the original files, verify them, and remove the record."""
    given = module.params
    write = not module.check_mode
    if not Path(given["record"]).exists():
        return {"changed": False, "diff": [], "remarks": []}
    record = load_record(given["record"], ROLE)
    kept = changed_files(record, {})
    diffs = restore_files(record, write)
    if write:
        reload_systemd(module, diffs)
        left = restore_files(record, write=False)
        failed = [entry["after_header"] + ": not restored" for entry in left]
        kept = conclude(given["record"], record, kept, failed)
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
            "files": {"type": "dict", "default": {}},
            "nofile": {"type": "int"},
            "wanted": {"type": "int"},
            "found": {"type": "dict", "default": {}},
            "nr_open": {"type": "int", "default": 0},
            "reported": {"type": "dict", "default": {}},
            "record": {"type": "path"},
        },
        required_if=[
            ("state", "present", ["record", "nofile", "wanted"]),
            ("state", "absent", ["record"]),
        ],
        supports_check_mode=True,
    )
    try:
        if module.params["state"] == "probe":
            result: dict[str, Any] = {"changed": False, **look()}
        else:
            with host_lock(module):
                result = present(module) if module.params["state"] == "present" else absent(module)
    except (ValueError, OSError) as error:
        module.fail_json(msg=str(error))
    for line in result.get("remarks", []):
        module.warn(line)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
