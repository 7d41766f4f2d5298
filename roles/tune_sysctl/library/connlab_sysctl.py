#!/usr/bin/python
"""Ansible module: kernel parameters with a read-back, a record and a way back."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.connlab_record import (
    boot_id,
    empty_record,
    load_record,
    locked,
    place_files,
    read_text,
    remove_record,
    restore_files,
    save_record,
    write_text,
)
from ansible.module_utils.connlab_sysctl_tree import (
    SysctlError,
    apply,
    load_peers,
    mismatches,
    probe,
    read_key,
    remember,
    revert,
    runtime_diff,
    save_peers,
)

DOCUMENTATION = r"""
module: connlab_sysctl
short_description: Set kernel parameters, prove them, and put them back
description:
  - Reads keys (O(state=probe)), brings them and their sysctl.d file to wanted values with one
    run of C(sysctl -p) and reads them back (O(state=present)), or restores what was found
    before the first change (O(state=absent)).
options:
  state:
    description: What to do.
    type: str
    choices: [probe, present, absent]
    default: present
  keys:
    description: Keys to look at, for O(state=probe).
    type: list
    elements: str
    default: []
  settings:
    description: Keys to set, in order; each with C(key), C(value), C(wanted).
    type: list
    elements: dict
    default: []
  observed:
    description: Keys of this kernel that were set elsewhere; proven here and recorded.
    type: dict
    default: {}
  reported:
    description: Keys that could not be set anywhere, each with the reason; recorded.
    type: dict
    default: {}
  path:
    description: The sysctl.d file, or nothing for values that end with this boot.
    type: str
    default: ""
  content:
    description: The sysctl.d file's text, also what is applied without a file.
    type: str
    default: ""
  record:
    description: The JSON file that keeps the values found.
    type: path
  where:
    description: Whose kernel parameters these are.
    type: str
    choices: [host, underlay]
    default: host
  peers:
    description: A glob of the records of other labs that share this kernel.
    type: str
    default: ""
author: connlab
"""
EXAMPLES = r"""
- name: Hold a million descriptors in one process
  connlab_sysctl:
    settings: [{key: fs.nr_open, value: "1048576", wanted: "1048576"}]
    content: "fs.nr_open = 1048576\n"
    path: /etc/sysctl.d/90-connlab.conf
    record: /var/lib/connlab/tune_sysctl.json
"""
RETURN = r"""
keys:
  description: Each key's value and whether it can be written here.
  returned: state probe
  type: dict
settings:
  description: Each key as found before the first change and as set now.
  returned: state present
  type: dict
"""

ROLE = "tune_sysctl"


def look(module: AnsibleModule) -> dict[str, Any]:
    """Return what the kernel has now."""
    memory = Path("/proc/meminfo").read_text(encoding="ascii").split()
    return {
        "keys": probe(module.params["keys"]),
        "memory_kib": int(memory[memory.index("MemTotal:") + 1]),
        "page_bytes": os.sysconf("SC_PAGESIZE"),
    }


def run_sysctl(module: AnsibleModule, path: str, content: str) -> str:
    """Apply a file of values with one run of sysctl(8); return its standard error."""
    sysctl = module.get_bin_path("sysctl", required=True, opt_dirs=["/usr/sbin", "/sbin"])
    if path:
        return str(module.run_command([sysctl, "-p", path])[2])
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".conf") as stream:
        stream.write(content)
        stream.flush()
        return str(module.run_command([sysctl, "-p", stream.name])[2])


def present(module: AnsibleModule) -> dict[str, Any]:
    """Bring the kernel and the file to their values, prove it, and write the record."""
    given = module.params
    path, kept = given["path"], given["record"]
    record = load_record(kept, ROLE)
    if not path and record.get("boot_id", boot_id()) != boot_id():
        # What was set without a file ended with that boot; so did what it had found.
        record = empty_record(ROLE)
    record["boot_id"] = boot_id()
    wanted = {entry["key"]: entry["value"] for entry in given["settings"]}
    now = {key: read_key(key) or "" for key in wanted}
    stale = {key: value for key, value in wanted.items() if now[key] != value}
    files = {path: given["content"]} if path else {}
    remember(record, now, given["where"])
    diffs = place_files(record, files, write=False)
    if stale:
        diffs.append(runtime_diff({key: now[key] for key in stale}, stale))
    if diffs and not module.check_mode:
        before = {name: read_text(name) for name in (kept, path) if name}
        # The values found are safe on disk before the first of them is changed.
        save_record(kept, record)
        try:
            place_files(record, files, write=True)
            apply(wanted, lambda: run_sysctl(module, path, given["content"]))
        except (SysctlError, OSError):
            for name, text in before.items():
                write_text(name, text)
            raise
    seen = {key: e["set"] for key, e in given["observed"].items() if read_key(key) is not None}
    wrong = [] if module.check_mode else mismatches(seen)
    if wrong:
        raise SysctlError("; ".join(wrong) + " (the machine underneath has the wanted value)")
    for entry in given["settings"]:
        record["settings"][entry["key"]].update(set=entry["value"], wanted=entry["wanted"])
    record["settings"] = {
        **{key: entry for key, entry in record["settings"].items() if key in record["since"]},
        **given["observed"],
    }
    record["reported"] = given["reported"]
    if not module.check_mode:
        save_record(kept, record)
    return {
        "changed": bool(diffs),
        "diff": diffs,
        "settings": record["settings"],
        "reported": record["reported"],
    }


def absent(module: AnsibleModule) -> dict[str, Any]:
    """Restore the values and the file found, prove it, and remove the record."""
    given = module.params
    write = not module.check_mode
    record = load_record(given["record"], ROLE)
    changed: dict[str, tuple[str, str]] = {}
    if record["files"] or record.get("boot_id", boot_id()) == boot_id():
        peers = load_peers(given["peers"], given["record"], ROLE)
        changed, heirs = revert(record, peers, write)
        if write:
            save_peers(peers, heirs)
    diffs = restore_files(record, write)
    if changed:
        diffs.append(
            runtime_diff(
                {key: pair[0] for key, pair in changed.items()},
                {key: pair[1] for key, pair in changed.items()},
            )
        )
    if write:
        remove_record(given["record"])
    return {"changed": True, "diff": diffs}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["probe", "present", "absent"],
                "default": "present",
            },
            "keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "settings": {"type": "list", "elements": "dict", "default": []},
            "observed": {"type": "dict", "default": {}},
            "reported": {"type": "dict", "default": {}},
            "path": {"type": "str", "default": ""},
            "content": {"type": "str", "default": ""},
            "record": {"type": "path"},
            "where": {"type": "str", "choices": ["host", "underlay"], "default": "host"},
            "peers": {"type": "str", "default": ""},
        },
        required_if=[("state", "present", ["record"]), ("state", "absent", ["record"])],
        supports_check_mode=True,
    )
    if module.params["state"] == "probe":
        module.exit_json(changed=False, **look(module))
    if module.params["state"] == "absent" and not Path(module.params["record"]).exists():
        module.exit_json(changed=False, diff=[])
    action = present if module.params["state"] == "present" else absent
    # Labs that share a kernel share the directory above their own records, and its lock.
    directory = module.params["peers"].partition("*")[0] or Path(module.params["record"]).parent
    try:
        with contextlib.nullcontext() if module.check_mode else locked(directory):
            result = action(module)
    except (SysctlError, ValueError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
