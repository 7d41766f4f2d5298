"""What a role found on a host before its first change, kept beside what it set.

One JSON file per role, readable by everybody, so that a revert can put things back and a
benchmark can record the values it ran under:

    {"role": "...", "boot_id": "...",
     "settings": {"<key>": {"found": "<text>", "set": "<text>", "wanted": "<text>",
                            "where": "host|underlay"}},
     "reported": {"<key>": "<why it could not be set>"},
     "since": {"<key>": <nanoseconds of CLOCK_REALTIME>},
     "files": {"<path>": "<text found>" or null where there was no file},
     "directories": ["<path>", ...]}            those that the role made, innermost first

Only the standard library, Python 3.9 or newer: this runs on the hosts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_text(path: str | Path) -> str | None:
    """Return a file's text, or None where there is no such file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def write_text(path: str | Path, text: str | None, mode: int = 0o644) -> None:
    """Replace a file by `text` in one step, or remove it where `text` is None.

    Errors: OSError where the directory cannot be made or written.
    """
    target = Path(path)
    if text is None:
        target.unlink(missing_ok=True)
        return
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # A name that starts with a dot and has no suffix: sysctl.d, limits.d and networkd pass it by.
    handle, temporary = tempfile.mkstemp(prefix=".connlab-", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def empty_record(role: str) -> Record:
    """Return the record of a role that has not changed anything yet."""
    return {
        "role": role,
        "settings": {},
        "reported": {},
        "since": {},
        "files": {},
        "directories": [],
    }


def load_record(path: str | Path, role: str) -> Record:
    """Return the record at `path`, an empty one where there is none.

    Errors: ValueError, naming the file, where it is not a record of this role: to go on would
    lose the only copy of the values found.
    """
    text = read_text(path)
    if text is None:
        return empty_record(role)
    try:
        loaded = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}): move it away by hand") from error
    if not isinstance(loaded, dict) or loaded.get("role") != role:
        raise ValueError(f"{path}: not a record of the role {role}: move it away by hand")
    return {**empty_record(role), **loaded}


def save_record(path: str | Path, record: Mapping[str, Any]) -> bool:
    """Write a record where it differs from what the file says; return whether it did."""
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    if read_text(path) == text:
        return False
    write_text(path, text)
    return True


def remove_record(path: str | Path) -> None:
    """Remove a record, and the directories above it that nothing is left in."""
    target = Path(path)
    target.unlink(missing_ok=True)
    for parent in list(target.parents)[:2]:
        # /var/lib itself is never empty; a parent that others still use stays.
        with contextlib.suppress(OSError):
            parent.rmdir()


@contextlib.contextmanager
def locked(directory: str | Path) -> Iterator[None]:
    """Hold the directory's lock: two labs may tune the machine underneath at the same moment."""
    Path(directory).mkdir(mode=0o755, parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def boot_id() -> str:
    """Return the identity of this boot (random(4), /proc/sys/kernel/random/boot_id)."""
    return (read_text("/proc/sys/kernel/random/boot_id") or "").strip()


def difference(header: str, before: str, after: str) -> dict[str, str]:
    """Return one entry of the list that Ansible prints with --diff."""
    return {
        "before_header": header,
        "after_header": header,
        "before": before,
        "after": after,
    }


def lines(values: Mapping[str, object]) -> str:
    """Return values one per line, as sysctl(8) prints them."""
    return "".join(f"{key} = {value}\n" for key, value in values.items())


def file_diff(path: str, before: str | None, after: str | None) -> dict[str, str]:
    """Return the difference of a file's text, None where there is no file."""
    return {
        "before_header": path if before is not None else "/dev/null",
        "after_header": path if after is not None else "/dev/null",
        "before": before or "",
        "after": after or "",
    }


def place_files(
    record: Record, wanted: Mapping[str, str | None], write: bool
) -> list[dict[str, str]]:
    """Bring files to their wanted text; remember each one's first text in `record["files"]`.

    A file that an earlier run placed and this one no longer wants goes back to what was found.
    Returns the differences; writes nothing unless `write`.
    """
    diffs = []
    for path, text in {**record["files"], **wanted}.items():
        before = read_text(path)
        if before == text:
            continue
        record["files"].setdefault(path, before)
        for parent in Path(path).parents:
            if parent.exists():
                break
            if str(parent) not in record["directories"]:
                record["directories"].append(str(parent))
        diffs.append(file_diff(path, before, text))
        if write:
            write_text(path, text)
    return diffs


def restore_files(record: Mapping[str, Any], write: bool) -> list[dict[str, str]]:
    """Give every file of a record the text that was found, and return the differences."""
    diffs = []
    for path, text in record["files"].items():
        before = read_text(path)
        if before == text:
            continue
        diffs.append(file_diff(path, before, text))
        if write:
            write_text(path, text)
    for directory in record["directories"] if write else []:
        # One that somebody else has put a file into since stays.
        with contextlib.suppress(OSError):
            Path(directory).rmdir()
    return diffs
