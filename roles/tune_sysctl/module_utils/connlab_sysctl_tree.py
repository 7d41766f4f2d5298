"""Read, apply, prove and put back kernel parameters, with a record of what was found.

Only the standard library, Python 3.9 or newer: this runs on the hosts.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.connlab_record import (
    Record,
    boot_id,
    difference,
    lines,
    load_record,
    save_record,
)

PROC_SYS = Path("/proc/sys")


class SysctlError(Exception):
    """A kernel parameter did not take the value it was given; the text names key and values."""


def normal(text: str) -> str:
    """Return a value with single spaces: the kernel prints tabs between figures."""
    return " ".join(text.split())


def key_path(key: str, root: Path = PROC_SYS) -> Path:
    """Return a key's file; "/" may stand for a dot inside a name, as in sysctl.d(5)."""
    return root / key.translate(str.maketrans("./", "/."))


def read_key(key: str, root: Path = PROC_SYS) -> str | None:
    """Return a key's value, or None where this namespace or kernel has none to read."""
    try:
        return normal(key_path(key, root).read_text(encoding="utf-8"))
    except OSError:
        return None


def write_key(key: str, value: str, root: Path = PROC_SYS) -> None:
    """Write a key directly. Errors: OSError where the kernel refuses."""
    key_path(key, root).write_text(value, encoding="utf-8")


def probe(keys: Iterable[str], root: Path = PROC_SYS) -> dict[str, dict[str, Any]]:
    """Return each key's value and whether it can be written here.

    access(2) answers for a read-only mount and for a namespace that may not write alike
    (test_perm(), fs/proc/proc_sysctl.c).
    """
    return {
        key: {
            "found": read_key(key, root),
            "writable": os.access(key_path(key, root), os.W_OK),
        }
        for key in keys
    }


def mismatches(wanted: Mapping[str, str], root: Path = PROC_SYS) -> list[str]:
    """Return one line per key that does not have its value: key, wanted, found."""
    wrong = []
    for key, value in wanted.items():
        found = read_key(key, root)
        if found != value:
            shown = "no such key" if found is None else found
            wrong.append(f"{key}: wanted {value}, found {shown}")
    return wrong


def runtime_diff(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """Return the difference between what the kernel has and is to have, for --diff."""
    return difference("kernel parameters", lines(before), lines(after))


def remember(record: Record, found: Mapping[str, str], where: str) -> None:
    """Add keys that a record doesn't have yet, with the values found now."""
    for key, value in found.items():
        if key not in record["since"]:
            record["since"][key] = time.time_ns()
            record["settings"][key] = {"found": value, "set": value, "where": where}


def undo(before: Mapping[str, str | None], root: Path) -> list[str]:
    """Write back the values of before where they are others now; return what stays wrong.

    In the mapping's order: a key that changes others comes before them.
    """
    for key, value in before.items():
        if value is not None and read_key(key, root) != value:
            with contextlib.suppress(OSError):  # what was refused is found below
                write_key(key, value, root)
    return mismatches({key: value for key, value in before.items() if value is not None}, root)


def apply(
    wanted: Mapping[str, str],
    load: Callable[[], str],
    root: Path = PROC_SYS,
    along: Iterable[str] = (),
) -> None:
    """Have `load` apply the values, read them back, and undo all of them if one did not hold.

    load: writes the values and returns what sysctl(8) printed on standard error, if it ran it. That
    exits 0 on some values that the kernel refused or changed, so only the read-back counts, also
    where a write raised OSError; along: keys that change with those wanted.
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


def hand_over(record: Record, key: str, peers: Mapping[str, Record]) -> str | None:
    """Pass a key's found value on to the next lab that changed it after this one.

    Labs that share a kernel stack their changes. Whoever leaves from the middle of the stack must
    not touch the value that the labs above rely on: the one directly above gets to restore what
    this one found. Returns that peer's path, or None where this lab is on top and restores.
    """
    later = [
        (peer["since"][key], path)
        for path, peer in peers.items()
        if peer["since"].get(key, 0) > record["since"][key]
    ]
    if not later:
        return None
    path = min(later)[1]
    peers[path]["settings"][key]["found"] = record["settings"][key]["found"]
    return path


def revert(
    record: Record, peers: Mapping[str, Record], write: bool, root: Path = PROC_SYS
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Put back what was found, and prove it by reading it again.

    Returns ({key: (value before, value after)}, [paths of peers that got a found value]).
    Errors: SysctlError where a key did not take its old value. A key that is gone by now (its
    module was unloaded) has nothing left to put back.
    """
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
        if now is None or now == found:
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

    Those of an earlier boot don't count: what they set is gone.
    """
    if not pattern:
        return {}
    base, _, tail = pattern.partition("*")
    paths = sorted(Path(base).glob("*" + tail)) if Path(base).is_dir() else []
    peers = {str(path): load_record(path, role) for path in paths if str(path) != own}
    return {path: peer for path, peer in peers.items() if peer.get("boot_id") == boot_id()}


def save_peers(peers: Mapping[str, Record], paths: Iterable[str]) -> None:
    """Write back the records of the peers at `paths`."""
    for path in paths:
        save_record(path, peers[path])
