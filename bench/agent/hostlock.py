"""One run at a time on a host: its agents hold a lock, and say who they are for.

The lock is flock(2) on ``connlab-run.<owner>.lock`` in the first of :data:`FOLDERS` that can be
written to. All agents of one controller share it (LOCK_SH); the kernel lets go of it when the last
of them ends, however that comes about. Who wants to change the host, or to run something else on
it, looks for locks of other owners first, and so do the playbooks that revert and destroy.

Before an agent is pushed the controller runs this file by itself, ``python3 -c SOURCE OWNER``, and
gets the other holders as JSON.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

FOLDERS = ("/run/lock", "/dev/shm", "/tmp")
"""All can be written to by everybody where they are there (hier(7), shm_overview(7))."""

NAME = re.compile(r"connlab-run\.([0-9a-f]{16})\.lock\Z")
MOST_BYTES = 4096
MOST_TEXT = 200
FIELDS = ("who", "run", "since")
PATIENCE = 2.0
"""Seconds in which a file of our own can be locked: another agent may be removing it."""


class Held(Exception):
    """Another run has the host; the text says whose it is."""


def holders(owner: str) -> List[Dict[str, Any]]:
    """Who else holds this host: a list of {owner, who, run, since, boot_ns}.

    Locks of ``owner`` itself do not count. Files that nobody has locked are left over; they are
    removed where that is allowed.
    """
    found = []
    for folder in FOLDERS:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            match = NAME.match(name)
            if match and match.group(1) != owner:
                path = os.path.join(folder, name)
                entry = _holder(path)
                if entry is not None:
                    entry["owner"] = match.group(1)
                    found.append(entry)
    return found


def _holder(path: str) -> Optional[Dict[str, Any]]:
    """What a lock's file says of its holder; None if nobody holds it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                return None
            return _said(os.read(fd, MOST_BYTES))
        with contextlib.suppress(OSError):  # another user's, in a directory with the sticky bit
            os.unlink(path)
        return None
    finally:
        os.close(fd)


def _said(data: bytes) -> Dict[str, Any]:
    """The text of a lock's file, as far as it makes sense: anybody may have written it."""
    try:
        fields = json.loads(data.decode("utf-8", "replace"))
    except ValueError:
        fields = {}
    if not isinstance(fields, dict):
        fields = {}
    found: Dict[str, Any] = {}
    for key in FIELDS:
        value = fields.get(key)
        text = value if isinstance(value, str) else "unknown"
        found[key] = "".join(c if c.isprintable() else "?" for c in text[:MOST_TEXT])
    boot_ns = fields.get("boot_ns")
    found["boot_ns"] = boot_ns if isinstance(boot_ns, int) and boot_ns >= 0 else 0
    return found


def named(entry: Dict[str, Any]) -> str:
    """A holder in words."""
    return f"a run holds it: {entry['who']}, {entry['run']}, since {entry['since']}"


def hold(owner: str, who: str, run: str) -> int:
    """Hold this host for an owner until this process and its children end; returns a descriptor.

    :raises Held: if another owner has had it before.
    :raises OSError: if there is no directory to keep the lock in.
    """
    fd, boot_ns = _locked(owner, who, run)
    for entry in holders(owner):
        # Two that begin at the same moment see each other: the later one gives way.
        if (entry["boot_ns"], entry["owner"]) < (boot_ns, owner):
            let_go(fd, owner)
            raise Held(named(entry))
    return fd


def _locked(owner: str, who: str, run: str) -> Tuple[int, int]:
    """Our own lock, shared: (descriptor, when it was first taken)."""
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    text = json.dumps(
        {
            "owner": owner,
            "who": who[:MOST_TEXT],
            "run": run[:MOST_TEXT],
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "boot_ns": now,
            "pid": os.getpid(),
        }
    )
    until = time.monotonic() + PATIENCE
    path = os.path.join(_folder(), f"connlab-run.{owner}.lock")
    while True:
        # Never O_CREAT on a file of another user: fs.protected_regular refuses that even to root.
        for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT | os.O_EXCL):
            try:
                fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
                break
            except (FileNotFoundError, FileExistsError):
                fd = -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # just being removed
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    if flags != os.O_RDONLY:
                        os.write(fd, text.encode() + b"\n")
                        return fd, now
                    return fd, int(_said(os.pread(fd, MOST_BYTES, 0))["boot_ns"]) or now
            os.close(fd)
        if time.monotonic() > until:
            raise OSError(errno.EBUSY, f"{path}: cannot be locked")
        time.sleep(0.01)


def _folder() -> str:
    for folder in FOLDERS:
        if os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise OSError(errno.ENOENT, "none of " + ", ".join(FOLDERS) + " can be written to")


def let_go(fd: int, owner: str) -> None:
    """Give the lock back, and remove its file if nobody else of this owner holds it."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(os.path.join(_folder(), f"connlab-run.{owner}.lock"))
    os.close(fd)


if __name__ == "__main__":
    print(json.dumps(holders(sys.argv[1])))
