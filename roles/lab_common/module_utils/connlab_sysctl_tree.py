"""Read, apply, verify and restore kernel parameters, with a record of the original values.

Runs on the hosts: standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.connlab_record import (
    FORMAT,
    Record,
    boot_id,
    difference,
    lines,
    load_record,
    next_order,
    save_record,
)

PROC_SYS = Path("/proc/sys")


class SysctlError(Exception):
    """A kernel parameter did not take its value; the text names the key and the values."""


def normal(text: str) -> str:
    """Return a value with single spaces; the kernel prints tabs between figures."""
    return " ".join(text.split())


def key_path(key: str, root: Path = PROC_SYS) -> Path:
    """Return a key's file. In a key "/" stands for a dot inside a name, as in sysctl.d(5)."""
    return root / key.translate(str.maketrans("./", "/."))


def read_key(key: str, root: Path = PROC_SYS) -> str | None:
    """Return a key's value, or None if this namespace or kernel does not have the key."""
    try:
        return normal(key_path(key, root).read_text(encoding="utf-8"))
    except OSError:
        return None


def write_key(key: str, value: str, root: Path = PROC_SYS) -> None:
    """Write a key directly. Errors: OSError if the kernel refuses the value."""
    key_path(key, root).write_text(value, encoding="utf-8")


def probe(keys: Iterable[str], root: Path = PROC_SYS) -> dict[str, dict[str, Any]]:
    """Return each key's value, and whether it can be written here.

    access(2) covers both a read-only mount and a namespace that may not write the key (test_perm(),
    fs/proc/proc_sysctl.c).
    """
    return {
        key: {
            "found": read_key(key, root),
            "writable": os.access(key_path(key, root), os.W_OK),
        }
        for key in keys
    }


def mismatches(wanted: Mapping[str, str], root: Path = PROC_SYS) -> list[str]:
    """Return one line for each key that does not have its wanted value: key, wanted, found."""
    wrong = []
    for key, value in wanted.items():
        found = read_key(key, root)
        if found != value:
            shown = "no such key" if found is None else found
            wrong.append(f"{key}: wanted {value}, found {shown}")
    return wrong


def runtime_diff(
    before: Mapping[str, str | None], after: Mapping[str, str | None]
) -> dict[str, str]:
    """Return the difference between the kernel's current and new values, for --diff."""
    return difference("kernel parameters", lines(before), lines(after))


def remember(
    record: Record,
    found: Mapping[str, str],
    where: str,
    peers: Mapping[str, Record] | None = None,
) -> None:
    """Add keys that a record does not have yet, with their current values as the original ones.

    peers: records of other labs on this kernel, which made their changes earlier.
    """
    order = next_order([record, *(peers or {}).values()])
    for key, value in found.items():
        if key not in record["since"]:
            record["since"][key] = order
            record["settings"][key] = {"found": value, "where": where}


def ours(record: Mapping[str, Any], key: str) -> set[str] | None:
    """Return the values that a record's role gave a key, or None if the record does not say.

    There are several while a change is in progress, or after it was interrupted.
    """
    entry = record["settings"][key]
    if entry.get("set") is None:
        return None
    # In format 1, `set` was the original value until the change had been verified.
    if record["format"] < FORMAT and entry["set"] == entry["found"]:
        return None
    return {entry["set"], *entry.get("earlier", [])}


def changed_since(record: Mapping[str, Any], key: str, now: str | None) -> bool:
    """Return whether a key's value is neither the original one nor one that this role set."""
    known = ours(record, key)
    found = record["settings"][key]["found"]
    return known is not None and now is not None and now != found and now not in known


def restack(record: Record, keys: Iterable[str], peers: Mapping[str, Record]) -> set[str]:
    """Move a lab to the top of the labs that changed keys, before it changes them again.

    The lab directly above it takes over the values that this lab would restore. This lab, now the
    last one, will restore the current values. Returns the paths of the peers to save before this
    record.
    """
    heirs = set()
    for key in keys:
        heir = hand_over(record, key, peers) if key in record["since"] else None
        if heir is not None:
            heirs.add(heir)
            del record["since"][key], record["settings"][key]
    return heirs


def claim(
    record: Record,
    wanted: Mapping[str, str],
    now: Mapping[str, str],
    peers: Mapping[str, Record] | None = None,
) -> list[str]:
    """Record the values before they are set, and return a line for each that others changed.

    Until `settle`, both the old and the new value count as the role's. A value that another user or
    program has changed to the one wanted now still counts as theirs, and so does the value of a lab
    above.
    """
    said = []
    for key, value in wanted.items():
        if above(record, key, peers or {}) is not None:
            continue
        entry = record["settings"][key]
        known = ours(record, key)
        if known is None:
            known = {value} if entry.get("set") is None else {entry["set"], now[key]}
        elif changed_since(record, key, now[key]):
            what = f"set to {value}" if now[key] != value else "kept"
            said.append(
                f"{key}: found {now[key]}, changed since the tune "
                f"(set {entry['set']}, found {entry['found']}): {what}"
            )
            if now[key] == value:
                continue
        earlier = sorted(known - {value})
        entry["set"] = value
        if earlier:
            entry["earlier"] = earlier
    return said


def settle(record: Record) -> None:
    """Remove the values from before a change that has been verified."""
    for entry in record["settings"].values():
        entry.pop("earlier", None)


def undo(before: Mapping[str, str | None], root: Path) -> list[str]:
    """Restore the earlier values of keys that differ, and return the keys that still differ.

    Uses the mapping's order: a key that changes other keys comes before them.
    """
    for key, value in before.items():
        if value is not None and read_key(key, root) != value:
            with contextlib.suppress(OSError):  # the comparison below finds refused values
                write_key(key, value, root)
    return mismatches({key: value for key, value in before.items() if value is not None}, root)


def apply(
    wanted: Mapping[str, str],
    load: Callable[[], str],
    root: Path = PROC_SYS,
    along: Iterable[str] = (),
) -> None:
    """Apply the values with `load`, read them back, and undo all if one was not applied.

    load: writes the values, and returns the standard error of sysctl(8) if it ran it. sysctl(8)
    exits with 0 on some values that the kernel refused or changed, so only the read-back counts,
    even if a write raised OSError; along: keys that change together with the wanted ones.
    Errors: SysctlError with every key that differs, as wanted and found.
    """
    before = {key: read_key(key, root) for key in [*wanted, *along]}
    try:
        complaint = load().strip()
    except OSError as error:
        complaint = error.strerror or str(error)
    wrong = mismatches(wanted, root)
    if not wrong:
        return
    left = undo(before, root)
    outcome = f"could not be undone: {'; '.join(left)}" if left else "everything was undone"
    said = f" ({complaint})" if complaint else ""
    raise SysctlError(f"{'; '.join(wrong)}{said}; {outcome}")


def above(record: Record, key: str, peers: Mapping[str, Record]) -> str | None:
    """Return the path of the next lab that changed a key after this one, or None if none did."""
    later = [
        (peer["since"][key], path)
        for path, peer in peers.items()
        if peer["since"].get(key, 0) > record["since"][key]
    ]
    return min(later)[1] if later else None


def hand_over(record: Record, key: str, peers: Mapping[str, Record]) -> str | None:
    """Pass a key's original value on to the next lab that changed the key after this one.

    Labs that share a kernel stack their changes. A lab that leaves from the middle of the stack
    must not touch the value that the labs above rely on: the lab directly above takes over the
    original value. If that lab had found neither this lab's value nor this lab's original value,
    another user or program had changed the key in between, and it restores what it found.
    Returns that peer's path, or None if this lab is on top and restores the value itself.
    """
    path = above(record, key, peers)
    if path is not None and not changed_since(record, key, peers[path]["settings"][key]["found"]):
        peers[path]["settings"][key]["found"] = record["settings"][key]["found"]
    return path


def strays(record: Record, peers: Mapping[str, Record], root: Path = PROC_SYS) -> dict[str, str]:
    """Return one line for each key that was changed since the tune: a revert keeps it."""
    said = {}
    for key in record["since"]:
        path = above(record, key, peers)
        now = read_key(key, root) if path is None else peers[path]["settings"][key]["found"]
        if changed_since(record, key, now):
            entry = record["settings"][key]
            said[key] = (
                f"{key}: kept {now}, changed since the tune "
                f"(set {entry['set']}, found {entry['found']})"
            )
    return said


def revert(
    record: Record,
    peers: Mapping[str, Record],
    write: bool,
    root: Path = PROC_SYS,
    keep: Collection[str] | None = None,
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Restore the original values, and verify them by reading them back.

    keep: keys to leave unchanged; None for those that `strays` names.
    Returns ({key: (value before, value after)}, [paths of peers that got an original value]).
    Errors: SysctlError if a key did not take its old value. A key that no longer exists (its module
    was unloaded) is skipped.
    """
    keep = strays(record, peers, root) if keep is None else keep
    changed: dict[str, tuple[str, str]] = {}
    heirs = []
    refused = []
    for key in record["since"]:
        found = record["settings"][key]["found"]
        heir = hand_over(record, key, peers)
        if heir is not None:
            heirs.append(heir)
            continue
        now = read_key(key, root)
        if now is None or now == found or key in keep:
            continue
        changed[key] = (now, found)
        if write:
            try:
                write_key(key, found, root)
            except OSError as error:
                refused.append(f"{key}: {error.strerror}")
    if write:
        wrong = mismatches({key: after for key, (_, after) in changed.items()}, root)
        if wrong:
            raise SysctlError("; ".join([*wrong, *refused]))
    return changed, sorted(set(heirs))


def load_peers(pattern: str, own: str, role: str) -> dict[str, Record]:
    """Return the records of the other labs on this kernel, by path. pattern: a glob, or "".

    Records of an earlier boot are left out unless they have a file, because their values are gone.
    """
    if not pattern:
        return {}
    base, _, tail = pattern.partition("*")
    paths = sorted(Path(base).glob("*" + tail)) if Path(base).is_dir() else []
    peers = {str(path): load_record(path, role) for path in paths if str(path) != own}
    return {
        path: peer
        for path, peer in peers.items()
        if peer["files"] or peer.get("boot_id") == boot_id()
    }


def save_peers(peers: Mapping[str, Record], paths: Iterable[str]) -> None:
    """Save the records of the peers at `paths`."""
    for path in paths:
        save_record(path, peers[path])
