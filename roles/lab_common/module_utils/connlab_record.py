"""Record of the original state of a host and of the settings that a role made.

Each role has one JSON file, readable by all users, so that a revert can restore the host and a
benchmark can record the values that it ran with:

    {"role": "...", "format": 2, "boot_id": "...",
     "settings": {"<key>": {"found": "<text>", "set": "<text>", "wanted": "<text>",
                            "where": "host|underlay", "earlier": ["<text>", ...]}},
     "reported": {"<key>": "<why it could not be set>"},
     "since": {"<key>": <order of the change among all records of this kernel>},
     "files": {"<path>": "<text found>" or null where there was no file},
     "placed": {"<path>": ["<sha256 of a text that the role gave it>", ...]},
     "directories": ["<path>", ...],            created by the role, innermost first
     "kept": ["<line>", ...]}                   settings that the last revert did not restore

A revert compares three values: the original one, the one that the role set, and the current one. If
the current value is neither of the others, another user or program has changed it since: it is kept
and named. `earlier` and all but the last sum of `placed` exist while a change is in progress. They
let a revert or another run continue after an interruption at any point.

Records of format 1 (without the field `format`) have no sums, and `set` is the original value until
a change is complete. What they do not say is restored as before there was a format 2.

Runs on the hosts: standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import ipaddress
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Check = Callable[[str, Any], None]

FORMAT = 2
LARGEST = 4 * 2**20
"""Maximum size of a record, bytes. Only the texts of the original files can make it large."""
DEEPEST = 8
"""Maximum depth of lists and objects in a record; the roles need five levels."""

STATE = Path("/var/lib/connlab")
"""Default directory of the roles' records. Its lock is the lock of the whole host."""
LOCK_SECONDS = 60.0
"""Seconds to wait for the lock. A role holds it for a few seconds, for many proxies up to 20."""
LOCK_PAUSE = 0.1
"""Seconds between two attempts."""
DRAFT = ".connlab-"
"""Prefix of the name of an incomplete file: services ignore names that start with a dot."""
BY_HAND = "move it away by hand"


class Changed(ValueError):
    """Another user or program has changed some of the role's settings, which are kept.

    The text names each of them. Everything else has been restored when this is raised.
    """


def read_text(path: str | Path) -> str | None:
    """Return a file's text, or None if there is no such file.

    Line ends are not converted, and `write_text` writes bytes that are not UTF-8 back unchanged.
    """
    try:
        return Path(path).read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None


def write_text(path: str | Path, text: str | None, mode: int = 0o644) -> None:
    """Replace a file atomically by `text`, or remove it if `text` is None.

    mode: for a new file; an existing file keeps its mode and owner.
    Errors: OSError if the directory cannot be created or written.
    """
    target = Path(path)
    if text is None:
        target.unlink(missing_ok=True)
        return
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = target.with_name(f"{DRAFT}{target.name}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as stream:
            stream.write(text.encode("utf-8", "surrogateescape"))
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(target)
            mode = stat.S_IMODE(found.st_mode)
            os.chown(temporary, found.st_uid, found.st_gid)
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def drafts(path: str | Path) -> list[Path]:
    """Return the drafts beside a file that a role left because it was killed while writing."""
    target = Path(path)
    return list(target.parent.glob(f"{DRAFT}{glob.escape(target.name)}*"))


def empty_record(role: str) -> Record:
    """Return the record of a role that has changed nothing yet."""
    return {
        "role": role,
        "format": FORMAT,
        "settings": {},
        "reported": {},
        "since": {},
        "files": {},
        "placed": {},
        "directories": [],
        "kept": [],
    }


def load_record(path: str | Path, role: str) -> Record:
    """Return the record at `path`, or an empty one if there is none.

    Errors: ValueError if it is not a record of this role, with one line that names file, field and
    what was expected. To continue would lose the only copy of the original values.
    """
    try:
        text = _read_record(Path(path))
        if text is None:
            return empty_record(role)
        loaded = json.loads(text)
        check_record(loaded, role)
    except RecursionError:
        raise ValueError(f"{path}: nested too deep, expected a role's record: {BY_HAND}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}): {BY_HAND}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}: {BY_HAND}") from error
    return {**empty_record(role), "format": 1, **loaded}


def _read_record(path: Path) -> str | None:
    """Return a record's text. Errors: ValueError if it is too long, not a file, or not UTF-8."""
    try:
        # O_NONBLOCK: a named pipe at this path would otherwise block the role.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("not a plain file, expected a record")
    with os.fdopen(handle, "rb") as stream:
        raw = stream.read(LARGEST + 1)
        if len(raw) > LARGEST:
            size = os.fstat(handle).st_size
            raise ValueError(f"{size} bytes, expected a record of at most {LARGEST}")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}, expected JSON") from error


def save_record(path: str | Path, record: Mapping[str, Any]) -> bool:
    """Write a record if it differs from the file, and return whether it did.

    Errors: ValueError if it is larger than `load_record` accepts.
    """
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    if len(text) > LARGEST:
        raise ValueError(f"{path}: would be {len(text)} bytes, expected at most {LARGEST}")
    if read_text(path) == text:
        return False
    write_text(path, text)
    return True


def remove_record(path: str | Path) -> None:
    """Remove a record, and the directories above it that are empty then."""
    target = Path(path)
    for each in [*drafts(target), target]:
        each.unlink(missing_ok=True)
    for parent in list(target.parents)[:2]:
        # /var/lib itself is never empty, and a parent that other labs still use stays.
        with contextlib.suppress(OSError):
            parent.rmdir()


def conclude(
    path: str | Path, record: Record, kept: Iterable[str], failed: Iterable[str] = ()
) -> list[str]:
    """End a revert: remove the record, unless something was not restored.

    kept: lines on settings that another user or program has changed since. The record then has only
    these lines: the next revert repeats them and does nothing else, and the next run of the role
    starts from scratch.
    failed: lines on settings that could not be restored. The record stays complete for a retry.
    Returns the lines of the previous revert. Errors: Changed or ValueError with the lines.
    """
    kept, failed = list(kept), list(failed)
    if failed:
        raise ValueError("; ".join([*failed, *kept]))
    if kept:
        save_record(path, {**empty_record(record["role"]), "kept": kept})
        raise Changed("; ".join(kept))
    remove_record(path)
    return list(record["kept"])


def lock_directory(record: str | Path) -> Path:
    """Return the directory whose lock a role holds while it changes the host.

    All roles with records below /var/lib/connlab share one.
    """
    parent = Path(record).parent
    return STATE if STATE in (parent, *parent.parents) else parent


@contextlib.contextmanager
def locked(directory: str | Path, limit: float | None = None) -> Iterator[None]:
    """Hold the directory's lock, from the first read of a host's state to the last change.

    limit: seconds to wait for it; None for LOCK_SECONDS.
    Errors: ValueError if another tune or revert holds it for longer.
    """
    path = Path(directory)
    limit = LOCK_SECONDS if limit is None else limit
    deadline = time.monotonic() + limit
    while True:
        handle = _try_lock(path)
        if handle is not None:
            break
        if time.monotonic() >= deadline:
            raise ValueError(
                f"{path}: locked for {limit:.0f} s by another tune or revert on this host, "
                "expected it to end: try again"
            )
        time.sleep(LOCK_PAUSE)
    try:
        yield
    finally:
        # Only if it is empty. A process that waits for its lock notices that it is gone.
        with contextlib.suppress(OSError):
            path.rmdir()
        os.close(handle)


@contextlib.contextmanager
def host_lock(module: Any, directory: str = "") -> Iterator[None]:
    """Hold the host's lock while an Ansible module of a role works on it.

    directory: the directory to lock, if it is not that of the record. Nothing is locked in check
    mode, or for a revert if the role has never run.
    """
    record = module.params["record"]
    idle = module.params["state"] == "absent" and not Path(record).exists()
    if module.check_mode or (idle and not drafts(record)):
        yield
        return
    with locked(directory or lock_directory(record)):
        if idle and not Path(record).exists():
            remove_record(record)
        yield


def _try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the directory's lock, or None if another process does."""
    handle = -1
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass  # its holder may also have removed the directory just now
    except FileExistsError:
        # The path existed for mkdir but was not a directory afterwards: it is gone, or a file.
        if path.exists() and not path.is_dir():
            raise
    if handle >= 0:
        os.close(handle)
    return None


def boot_id() -> str:
    """Return the identity of this boot (random(4), /proc/sys/kernel/random/boot_id)."""
    return (read_text("/proc/sys/kernel/random/boot_id") or "").strip()


def next_order(records: Iterable[Mapping[str, Any]]) -> int:
    """Return an order above that of every change in the records. The caller holds their lock.

    CLOCK_BOOTTIME only moves forward, but a boot sets it to zero, and records of format 1 have
    nanoseconds of the wall clock. So the result is also above the orders in the records.
    """
    largest = max((order for record in records for order in record["since"].values()), default=0)
    return max(largest + 1, time.clock_gettime_ns(time.CLOCK_BOOTTIME))


def difference(header: str, before: str, after: str) -> dict[str, str]:
    """Return one entry of the list that Ansible shows with --diff."""
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
    """Return the difference of a file's text; None stands for no file."""
    return {
        "before_header": path if before is not None else "/dev/null",
        "after_header": path if after is not None else "/dev/null",
        "before": before or "",
        "after": after or "",
    }


def digest(text: str) -> str:
    """Return the SHA-256 of a file's text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def foreign(record: Mapping[str, Any], path: str, now: str | None) -> bool:
    """Return whether a file's text is neither the original nor one that the role wrote."""
    placed = record["placed"].get(path)
    if placed is None or now == record["files"].get(path):
        return False
    return now is None or digest(now) not in placed


def aside(path: str, text: str) -> str:
    """Return the path beside a file at which its changed text is kept.

    sysctl.d, limits.d, systemd, networkd and nftables includes do not read files of this suffix.
    """
    number = 1
    while True:
        name = f"{path}.changed" + (f"-{number}" if number > 1 else "")
        if read_text(name) in (None, text):
            return name
        number += 1


def changed_files(record: Mapping[str, Any], wanted: Mapping[str, str | None]) -> list[str]:
    """Return one line for each file that was changed since the tune. Runs before `place_files`.

    wanted: the texts that this run writes, none for a revert; the other files are kept.
    """
    found = []
    for path in record["files"]:
        now = read_text(path)
        if not foreign(record, path, now) or (path in wanted and wanted[path] == now):
            continue
        if path not in wanted:
            what = "removed" if now is None else "changed"
            found.append(f"{path}: kept, {what} since the tune")
        elif now is not None:
            name = aside(path, now)
            found.append(
                f"{path}: changed since the tune: overwritten, the changed text is in {name}"
            )
    return found


def place_files(
    record: Record, wanted: Mapping[str, str | None], write: bool
) -> list[dict[str, str]]:
    """Write the wanted text of each file, and keep its original text in `record["files"]`.

    A file that an earlier run wrote and this run no longer wants gets its original text, unless it
    was changed since. A changed text that is replaced is kept beside the file.
    Returns the differences; writes nothing unless `write`. The caller has to save the record
    between a call that does not write and the one that does.
    """
    diffs = []
    for path, text in {**record["files"], **wanted}.items():
        before = read_text(path)
        if path in record["files"] and path not in record["placed"] and before is not None:
            record["placed"][path] = [digest(before)]  # the record has no sums (format 1)
        if path not in wanted and foreign(record, path, before):
            continue
        if before != text:
            record["files"].setdefault(path, before)
            for parent in Path(path).parents:
                if parent.exists():
                    break
                if str(parent) not in record["directories"]:
                    record["directories"].append(str(parent))
            diffs.append(file_diff(path, before, text))
        if path in wanted and path in record["files"] and text is not None:
            _mark(record, path, text)
        if before != text and write:
            if before is not None and foreign(record, path, before):
                write_text(aside(path, before), before, stat.S_IMODE(os.stat(path).st_mode))
            write_text(path, text)
        if write and path in wanted and path in record["files"] and text is not None:
            record["placed"][path] = [digest(text)]
        elif write and path not in wanted:
            del record["files"][path]
            record["placed"].pop(path, None)
    return diffs


def _mark(record: Record, path: str, text: str) -> None:
    """Add the sum of a text that is about to be written to a file."""
    placed = record["placed"].setdefault(path, [])
    if digest(text) not in placed:
        placed.append(digest(text))


def restore_files(record: Mapping[str, Any], write: bool) -> list[dict[str, str]]:
    """Restore the original text of every file of a record, and return the differences.

    Skips files that were changed since: `changed_files` names them.
    """
    diffs = []
    for path, text in record["files"].items():
        for draft in drafts(path) if write else []:
            draft.unlink(missing_ok=True)
        before = read_text(path)
        if before == text or foreign(record, path, before):
            continue
        diffs.append(file_diff(path, before, text))
        if write:
            write_text(path, text)
    for directory in record["directories"] if write else []:
        # A directory that has other files by now stays.
        with contextlib.suppress(OSError):
            Path(directory).rmdir()
    return diffs


def check_record(loaded: Any, role: str) -> None:
    """Check that JSON has the structure of a role's record; unknown fields are accepted.

    Errors: ValueError with the field, its value, and what was expected.
    """
    if not isinstance(loaded, dict):
        raise ValueError(f"got {_shown(loaded)}, expected the record of the role {role}")
    if loaded.get("role") != role:
        raise _wrong("role", loaded.get("role"), f"the text {role}")
    for field, value in loaded.items():
        if _too_deep(value):
            raise ValueError(f"{_printable(field)}: nested deeper than {DEEPEST} levels")
    for field, check in {**_FIELDS, **_ROLE_FIELDS.get(role, {})}.items():
        if field in loaded:
            check(field, loaded[field])
    settings = loaded.get("settings", {})
    for key in loaded.get("since", {}):
        field = f"settings.{_printable(key)}"
        if key not in settings:
            raise ValueError(f"{field}: missing, expected it, since `since` has it")
        if not isinstance(settings[key].get("found"), str):
            raise _wrong(f"{field}.found", settings[key].get("found"), "a text")


def _too_deep(value: Any) -> bool:
    """Return whether a value has more levels than a record may have. Does not recurse."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(DEEPEST):
        parts = [each.values() if isinstance(each, dict) else each for each in level]
        level = [each for part in parts for each in part if isinstance(each, (dict, list))]
    return bool(level)


def _printable(text: str) -> str:
    """Return the start of a text, without characters that could control a terminal."""
    return "".join(each if each.isprintable() else "?" for each in text[:80])


def _shown(value: Any) -> str:
    """Return a short description of any value."""
    if isinstance(value, str):
        return f"the text {_printable(value)}" if value else "an empty text"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return f"the number {repr(value)[:30]}"
    return "a list" if isinstance(value, list) else "an object"


def _wrong(field: str, value: Any, expected: str) -> ValueError:
    """Return the error for a field."""
    return ValueError(f"{field}: got {_shown(value)}, expected {expected}")


def _kind(kinds: type | tuple[type, ...], expected: str) -> Check:
    """Return a check for values of some types."""

    def check(field: str, value: Any) -> None:
        if not isinstance(value, kinds):
            raise _wrong(field, value, expected)

    return check


def _like(pattern: str, expected: str) -> Check:
    """Return a check for texts that match a pattern as a whole."""

    def check(field: str, value: Any) -> None:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise _wrong(field, value, expected)

    return check


def _number(least: int, most: int, expected: str) -> Check:
    """Return a check for whole numbers."""

    def check(field: str, value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise _wrong(field, value, expected)

    return check


def _list(each: Check, length: int | None = None) -> Check:
    """Return a check for lists. length: the required number of entries."""
    expected = "a list" if length is None else f"a list of {length}"

    def check(field: str, value: Any) -> None:
        if not isinstance(value, list) or length not in (None, len(value)):
            raise _wrong(field, value, expected)
        for number, entry in enumerate(value):
            each(f"{field}[{number}]", entry)

    return check


def _map(each: Check, key: Check | None = None) -> Check:
    """Return a check for objects whose values all have the same type."""

    def check(field: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise _wrong(field, value, "an object")
        for name, entry in value.items():
            if key is not None:
                key(field, name)
            each(f"{field}.{_printable(name)}", entry)

    return check


def _object(fields: Mapping[str, Check], needed: Iterable[str] = ()) -> Check:
    """Return a check for objects with given fields."""
    needed = tuple(needed)

    def check(field: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise _wrong(field, value, "an object")
        for name in needed:
            if name not in value:
                raise ValueError(f"{field}.{name}: missing, expected it")
        for name, each in fields.items():
            if name in value:
                each(f"{field}.{name}", value[name])

    return check


def _either(check: Check, empty: Any) -> Check:
    """Return a check that accepts one additional value."""

    def checked(field: str, value: Any) -> None:
        if value != empty:
            check(field, value)

    return checked


def _address(prefix: bool) -> Check:
    """Return a check for IP addresses, or for networks."""

    def check(field: str, value: Any) -> None:
        try:
            if not isinstance(value, str):
                raise ValueError(value)
            if prefix:
                ipaddress.ip_network(value, strict=False)
            else:
                ipaddress.ip_address(value)
        except ValueError:
            expected = "an IP network" if prefix else "an IP address"
            raise _wrong(field, value, expected) from None

    return check


_TEXT = _kind(str, "a text")
_TEXT_OR_NULL = _kind((str, type(None)), "a text or null")
# Text that becomes part of a command for ip(8): words on one line.
_WORDS = _like(r"[!-~]+( [!-~]+)*", "words on one line")
_NAME = _like(r"[A-Za-z0-9_@][A-Za-z0-9_.@:-]*", "a name without slashes")
_PATH = _like(r"(/(?!\.\.?(/|\Z))[^/\0]+)+", "an absolute path")
_SUM = _like(r"[0-9a-f]{64}", "a SHA-256")

_FIELDS: dict[str, Check] = {
    "format": _number(1, FORMAT, f"a number from 1 to {FORMAT}"),
    "boot_id": _TEXT,
    "settings": _map(
        _object(
            {
                **{"found": _TEXT_OR_NULL, "set": _TEXT_OR_NULL, "wanted": _TEXT_OR_NULL},
                **{"where": _TEXT, "earlier": _list(_TEXT)},
            }
        )
    ),
    "reported": _map(_TEXT),
    "since": _map(_number(0, 2**63, "a whole number above 0")),
    "files": _map(_TEXT_OR_NULL, _PATH),
    "placed": _map(_list(_SUM), _PATH),
    "directories": _list(_PATH),
    "kept": _list(_TEXT),
}

_TRANSLATION = _object(
    {
        **{"interface": _NAME, "destinations": _list(_address(True))},
        **{"addresses": _list(_address(False))},
        **{"ports": _list(_number(0, 65_535, "a port"), 2)},
    },
    ("interface", "destinations", "addresses", "ports"),
)

_ROLE_FIELDS: dict[str, dict[str, Check]] = {
    "alias_ips": {
        **{"interface": _NAME, "added": _list(_address(False))},
        **{"added_routes": _list(_address(True))},
    },
    "nat_router": {
        **{"unit": _either(_NAME, ""), "translation": _either(_TRANSLATION, {})},
        **{"tables": _list(_TRANSLATION), "routes": _map(_WORDS, _WORDS)},
        **{"gateways": _map(_list(_WORDS), _WORDS)},
    },
    "reverse_proxy": {
        **{"unit": _NAME, "runtime": _NAME, "pending": _kind(bool, "true or false")},
    },
    "reverse_proxy_routes": {
        **{"rules": _list(_WORDS), "routes": _list(_WORDS)},
        "keys": _list(_list(_number(0, 2**32 - 1, "a number"), 2)),
    },
}
