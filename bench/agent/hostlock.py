"""One run at a time on a host: the run's agents hold a lock that says who has the host.

The lock is flock(2) on ``connlab-run.<owner>.lock`` in the first of :data:`FOLDERS` that can be
written to. All agents of one controller share it (LOCK_SH). The kernel releases it when the last of
them ends, for whatever reason. A program that is going to change the host, or to run something else
on it, first looks for locks of other owners. The playbooks that revert and destroy do so too.

Before an agent is pushed, the controller runs this file by itself on the host, with its ``OWNER``
as the argument, and gets the other holders as JSON. So does ``playbooks/idle.yml``, which owns no
lock: there ``OWNER`` is empty. Directories may follow ``OWNER``; then only those are searched.
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
from typing import Any, Dict, List, Optional, Sequence, Tuple

FOLDERS = ("/run/lock", "/dev/shm", "/tmp")
"""Where these exist, all users can write to them (hier(7), shm_overview(7))."""

NAME = re.compile(r"connlab-run\.([0-9a-f]{16})\.lock\Z")
MOST_TEXT = 200
"""The most characters of a name."""

MOST_BYTES = 8192
"""The most bytes of a lock's file: two names as JSON take 12 bytes a character at most (RFC 8259
section 7)."""

FIELDS = ("who", "run", "since")

PATIENCE = 2.0
"""Seconds for locking our own file: another agent may be removing it."""

WRITE_SECONDS = 0.5
"""Seconds from locking a file until its text must be there: a holder writes right after it
locks."""

PROBES = 5
"""Tries to lock another's file: a process that only looks locks it too, for a moment."""

PAUSE = 0.01
"""Seconds between two tries."""

NOBODYS = (errno.ENOENT, errno.ELOOP, errno.EACCES, errno.ENXIO, errno.ENODEV)
"""Errors of open(2) for something that is not a lock: gone, a symbolic link, private, a socket, a
device."""


class Held(Exception):
    """Another run has the host; the text names it."""


def holders(owner: str, folders: Sequence[str] = ()) -> List[Dict[str, Any]]:
    """Return who else holds this host: a list of {owner, who, run, since, boot_ns}.

    Locks of ``owner`` itself do not count. Files that no process has locked are leftovers, and are
    removed where that is allowed.
    """
    found = []
    until = time.monotonic() + WRITE_SECONDS
    for folder in folders or FOLDERS:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            match = NAME.match(name)
            if match and match.group(1) != owner:
                entry = _holder(os.path.join(folder, name), until)
                if entry is not None:
                    entry["owner"] = match.group(1)
                    found.append(entry)
    return found


def _holder(path: str, until: float) -> Optional[Dict[str, Any]]:
    """Return what a lock's file says about its holder; None if no process holds it.

    :param until: until when to wait for its text, monotonic seconds
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except BlockingIOError:  # a write lease keeps it from being opened (fcntl(2), F_SETLEASE)
        return _fields(b"")
    except OSError as error:
        if error.errno in NOBODYS:
            return None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        for _ in range(PROBES):
            if _lock(fd, fcntl.LOCK_EX):
                _remove(fd, path)
                return None
            time.sleep(PAUSE)
        while not (data := os.pread(fd, MOST_BYTES, 0)).endswith(b"\n"):
            if time.monotonic() > until:
                break
            time.sleep(PAUSE)
        return _fields(data)
    finally:
        os.close(fd)


def _lock(fd: int, kind: int) -> bool:
    """Lock a file, unless another lock is in the way; return whether that worked."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(fd: int, path: str) -> bool:
    """Return whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


def _remove(fd: int, path: str) -> None:
    """Remove a file on which we hold an exclusive lock.

    Only the holder of that lock removes the file. So a new file that has come to its path meanwhile
    stays.
    """
    if _is(fd, path):
        with contextlib.suppress(OSError):  # another user's, in a directory with the sticky bit
            os.unlink(path)


def _fields(data: bytes) -> Dict[str, Any]:
    """Return the fields of a lock's file that are valid: any user may have written the file."""
    try:
        fields = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        fields = {}
    if not isinstance(fields, dict):
        fields = {}
    found: Dict[str, Any] = {}
    for key in FIELDS:
        value = fields.get(key)
        text = value if isinstance(value, str) else "unknown"
        found[key] = "".join(c if c.isprintable() else "?" for c in text[:MOST_TEXT])
    boot_ns = fields.get("boot_ns")
    sane = type(boot_ns) is int and 0 <= boot_ns <= _boot_ns()
    found["boot_ns"] = boot_ns if sane else 0
    return found


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def named(entry: Dict[str, Any]) -> str:
    """Return a holder in words."""
    return f"a run holds it: {entry['who']}, {entry['run']}, since {entry['since']}"


def hold(owner: str, who: str, run: str) -> int:
    """Hold this host for an owner until this process and its children end; return a descriptor.

    :raises Held: if another owner had it first.
    :raises OSError: if there is no directory to keep the lock in.
    """
    fd, boot_ns = _locked(owner, who, run)
    try:
        others = holders(owner)
    except BaseException:
        let_go(fd, owner)
        raise
    for entry in others:
        # Two runs that begin at the same moment see each other: the later one gives way.
        if (entry["boot_ns"], entry["owner"]) < (boot_ns, owner):
            let_go(fd, owner)
            raise Held(named(entry))
    return fd


def _locked(owner: str, who: str, run: str) -> Tuple[int, int]:
    """Take our own lock, shared; return (descriptor, when the lock was first taken)."""
    until = time.monotonic() + PATIENCE
    path = os.path.join(_folder(), f"connlab-run.{owner}.lock")
    while True:
        fd = _opened(path)
        if fd is not None:
            # The lock fails, or is void, while another process removes the file.
            boot_ns = _taken(fd, path, owner, who, run) if _lock(fd, fcntl.LOCK_SH) else None
            if boot_ns is not None:
                return fd, boot_ns
            os.close(fd)
        if time.monotonic() > until:
            raise OSError(errno.EBUSY, f"{path}: cannot be locked")
        time.sleep(PAUSE)


def _opened(path: str) -> Optional[int]:
    """Open or create the lock's file; return None if it is another kind of file, or changes now."""
    always = os.O_NOFOLLOW | os.O_CLOEXEC
    # Never O_CREAT on a file of another user: fs.protected_regular refuses that even to root.
    with contextlib.suppress(FileNotFoundError):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | always)
        except BlockingIOError:  # as in _holder()
            return None
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        return None
    with contextlib.suppress(FileExistsError):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | always, 0o644)
        os.fchmod(fd, 0o644)  # whatever the umask: a user who cannot read it would take the host
        return fd
    return None


def _taken(fd: int, path: str, owner: str, who: str, run: str) -> Optional[int]:
    """Return when the lock that we share was first taken, ns since boot; None if it is void.

    The time is read and written once others can see the lock. With an earlier time, another run
    that looked meanwhile would see no lock, and would still count as the later one.
    """
    if not _is(fd, path):
        return None
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        boot_ns = int(_fields(os.pread(fd, MOST_BYTES, 0))["boot_ns"])
        if not boot_ns and _lock(fd, fcntl.LOCK_EX):
            _remove(fd, path)  # its creator ended before it wrote the text
        return boot_ns or None
    boot_ns = _boot_ns()
    text = json.dumps(
        {
            "owner": owner,
            "who": who[:MOST_TEXT],
            "run": run[:MOST_TEXT],
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "boot_ns": boot_ns,
            "pid": os.getpid(),
        }
    )
    try:
        os.write(fd, text.encode() + b"\n")
    except OSError:
        let_go(fd, owner)
        raise
    return boot_ns


def _folder() -> str:
    for folder in FOLDERS:
        if os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise OSError(errno.ENOENT, "none of " + ", ".join(FOLDERS) + " can be written to")


def let_go(fd: int, owner: str) -> None:
    """Release the lock, and remove its file if no other agent of this owner holds it."""
    with contextlib.suppress(OSError):
        if _lock(fd, fcntl.LOCK_EX):
            _remove(fd, os.path.join(_folder(), f"connlab-run.{owner}.lock"))
    os.close(fd)


if __name__ == "__main__":
    print(json.dumps(holders(sys.argv[1], sys.argv[2:])))
