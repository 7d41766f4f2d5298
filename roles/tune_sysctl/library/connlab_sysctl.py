#!/usr/bin/python
"""Ansible module: set kernel parameters, with a read-back and a record for the revert."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.connlab_record import (
    FORMAT,
    Record,
    boot_id,
    changed_files,
    conclude,
    host_lock,
    load_record,
    place_files,
    read_text,
    restore_files,
    save_record,
    write_text,
)
from ansible.module_utils.connlab_sysctl_tree import (
    PROC_SYS,
    SysctlError,
    above,
    apply,
    claim,
    load_peers,
    mismatches,
    probe,
    read_key,
    remember,
    restack,
    revert,
    runtime_diff,
    save_peers,
    settle,
    strays,
)

DOCUMENTATION = r"""
module: connlab_sysctl
short_description: Set kernel parameters, verify them, and restore them
description:
  - Reads keys (O(state=probe)), sets them and their sysctl.d file with one run of C(sysctl -p) and
    reads them back (O(state=present)), or restores the original values (O(state=absent)).
options:
  state:
    description: Whether the keys are read, set or restored.
    type: str
    choices: [probe, present, absent]
    default: present
  keys:
    description: Keys to read, for O(state=probe).
    type: list
    elements: str
    default: []
  settings:
    description: Keys to set, in order; each with C(key), C(value), C(wanted).
    type: list
    elements: dict
    default: []
  observed:
    description: Keys of this kernel that were set elsewhere; verified here and recorded.
    type: dict
    default: {}
  reported:
    description: Keys that could not be set anywhere, each with the reason; recorded.
    type: dict
    default: {}
  path:
    description: The sysctl.d file, or empty for values that last until the next boot.
    type: str
    default: ""
  content:
    description: The text of the sysctl.d file, which is applied even without a path.
    type: str
    default: ""
  record:
    description: The JSON file that records the original values.
    type: path
  where:
    description: Whether the kernel parameters are a host's or those of the machine underneath.
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
- name: Allow a million descriptors in one process
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
  description: Each key with its original value and the value set now.
  returned: state present
  type: dict
remarks:
  description: >-
    Settings that another user or program changed since the tune, and how each was handled; after
    a revert, the settings that the previous revert kept. Also shown as warnings.
  returned: state present or absent
  type: list
"""

ROLE = "tune_sysctl"
ROOT = PROC_SYS
NR_OPEN = "fs.nr_open"
LIMITS = Path("/etc/security/limits.conf")


def look(module: AnsibleModule) -> dict[str, Any]:
    """Return the kernel's current values, its memory and its page size."""
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


def ended(record: Record) -> bool:
    """Return whether the values that a record names were lost at a reboot.

    They were, unless a file restored them at boot. A file that the role had not written yet when it
    was interrupted, or that it has removed again, has its original text.
    """
    if record.get("boot_id", boot_id()) == boot_id():
        return False
    if record["format"] < FORMAT:
        return not record["files"]
    return all(read_text(path) == found for path, found in record["files"].items())


def present(module: AnsibleModule) -> dict[str, Any]:
    """Set the kernel's values and the file, verify them, and write the record."""
    given = module.params
    path, kept = given["path"], given["record"]
    record = load_record(kept, ROLE)
    peers = load_peers(given["peers"], kept, ROLE)
    record["kept"] = []
    if ended(record):
        # The values that were set were lost at the reboot, and so were the original ones.
        record.update(settings={}, since={})
    record["boot_id"] = boot_id()
    wanted = {entry["key"]: entry["value"] for entry in given["settings"]}
    now = {key: read_key(key, ROOT) or "" for key in wanted}
    stale = {key: value for key, value in wanted.items() if now[key] != value}
    files = {path: given["content"]} if path else {}
    heirs = restack(record, stale, peers)
    remember(record, now, given["where"], peers)
    said = [*claim(record, wanted, now, peers), *changed_files(record, files)]
    diffs = place_files(record, files, write=False)
    if stale:
        diffs.append(runtime_diff({key: now[key] for key in stale}, stale))
    if diffs and not module.check_mode:
        before = {name: read_text(name) for name in (kept, path) if name}
        # The original values are on disk before the first of them is changed.
        save_peers(peers, sorted(heirs))
        save_record(kept, record)
        try:
            place_files(record, files, write=True)
            apply(wanted, lambda: run_sysctl(module, path, given["content"]), ROOT)
        except (SysctlError, OSError):
            if path:
                write_text(path, before[path])
            # Values that could not be restored here are left to a revert.
            if not heirs and not mismatches({key: now[key] for key in stale}, ROOT):
                write_text(kept, before[kept])
            raise
    seen = {key: e["set"] for key, e in given["observed"].items()}
    seen = {key: value for key, value in seen.items() if read_key(key, ROOT) is not None}
    wrong = [] if module.check_mode else mismatches(seen, ROOT)
    if wrong:
        raise SysctlError("; ".join(wrong) + " (the machine underneath has the wanted value)")
    settle(record)
    for entry in given["settings"]:
        record["settings"][entry["key"]]["wanted"] = entry["wanted"]
    record["settings"] = {
        **given["observed"],
        **{key: entry for key, entry in record["settings"].items() if key in record["since"]},
    }
    record["reported"] = given["reported"]
    record["format"] = FORMAT
    if not module.check_mode:
        save_record(kept, record)
    return {
        "changed": bool(diffs),
        "diff": diffs,
        "settings": record["settings"],
        "reported": record["reported"],
        "remarks": said,
    }


def nofile_above(limit: int) -> str | None:
    """Return a login's nofile limit that is above `limit`, with its file, or None.

    setrlimit(2) refuses a hard limit above fs.nr_open even to root, and pam_limits(8) then ends the
    session.
    """
    for path in [LIMITS, *sorted(LIMITS.with_name("limits.d").glob("*.conf"))]:
        for line in (read_text(path) or "").splitlines():
            words = line.partition("#")[0].split()
            if len(words) != 4 or words[1] not in ("hard", "-") or words[2] != "nofile":
                continue
            if words[3].isdigit() and int(words[3]) > limit:
                return f"{path} grants nofile {words[3]}"
    return None


def locks_out(record: Record, peers: Mapping[str, Record]) -> str | None:
    """Return why fs.nr_open must not be restored to its original value, or None if it may be."""
    if NR_OPEN not in record["since"] or above(record, NR_OPEN, peers) is not None:
        return None
    found, now = record["settings"][NR_OPEN]["found"], read_key(NR_OPEN, ROOT) or ""
    if not found.isdigit() or not now.isdigit() or int(found) >= int(now):
        return None
    granted = nofile_above(int(found))
    if granted is None:
        return None
    return f"{NR_OPEN}: wanted {found}, found {now}: {granted}, and would lock out every login"


def absent(module: AnsibleModule) -> dict[str, Any]:
    """Restore the original values and the file, verify them, and remove the record."""
    given = module.params
    write = not module.check_mode
    if not Path(given["record"]).exists():
        return {"changed": False, "diff": [], "remarks": []}
    record = load_record(given["record"], ROLE)
    changed: dict[str, tuple[str, str]] = {}
    kept, failed = changed_files(record, {}), []
    if not ended(record):
        peers = load_peers(given["peers"], given["record"], ROLE)
        keep = strays(record, peers, ROOT)
        kept += keep.values()
        why = locks_out(record, peers)
        if why and NR_OPEN not in keep:
            failed.append(why)
            keep[NR_OPEN] = why
        try:
            changed, heirs = revert(record, peers, write, ROOT, keep)
            if write:
                save_peers(peers, heirs)
        except SysctlError as error:
            failed.append(str(error))
    diffs = restore_files(record, write)
    if changed:
        diffs.append(
            runtime_diff(
                {key: pair[0] for key, pair in changed.items()},
                {key: pair[1] for key, pair in changed.items()},
            )
        )
    if write:
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
    given = module.params
    action = present if given["state"] == "present" else absent
    try:
        # Labs that share a kernel share the directory above their own records, and its lock.
        with host_lock(module, given["peers"].partition("*")[0]):
            result = action(module)
    except (SysctlError, ValueError, OSError) as error:
        module.fail_json(msg=str(error))
    for line in result["remarks"]:
        module.warn(line)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
