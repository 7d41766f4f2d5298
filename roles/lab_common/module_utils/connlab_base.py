"""Files, commands, mounts and the lock, for the modules that work on the lab's machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.connlab_layout import LabError

RUN = Path("/run/connlab")
"""Directory of the labs' notes about this machine: owners and original limits."""

LIMIT = 60.0
"""Seconds that a command may take; the lab's commands take milliseconds."""


def run(
    *command: str | Path, check: bool = True, text: str | None = None, limit: float = LIMIT
) -> str:
    """Return the output of a command.

    :param text: its standard input.
    :param limit: seconds that it may take.
    :raises LabError: if it fails and check is set, takes too long, or is not installed.
    """
    try:
        done = subprocess.run(
            command,
            input=text,
            stdin=None if text is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except subprocess.TimeoutExpired:
        words = " ".join(str(word) for word in command)
        raise LabError(f"{words}: not done within {limit:g} s") from None
    except FileNotFoundError as missing:
        raise LabError(f"{missing.filename}: not installed") from None
    if done.returncode and check:
        said = " / ".join(done.stderr.split("\n")).strip(" /") or f"exit {done.returncode}"
        raise LabError(f"{' '.join(str(word) for word in command)}: {said}")
    return done.stdout if done.returncode == 0 else ""


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.chmod(mode)
    fresh.replace(path)


def private(path: Path) -> None:
    """Create a directory that only its owner may enter, or change an existing one to that.

    The hosts' files contain setuid programs, and anything that a host's root writes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() in (0, path.stat().st_uid):
        path.chmod(0o700)


def is_private(path: Path) -> bool:
    """Return whether only its owner may enter a directory."""
    return path.is_dir() and path.stat().st_mode & 0o7777 == 0o700


def read(path: Path) -> str:
    """Return the text of a file, or an empty string if there is none."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


@contextlib.contextmanager
def locked(limit: float) -> Iterator[None]:
    """Hold the machine-wide lock of all labs, on a directory, so that no file is left.

    :raises LabError: if another create or destroy holds it for longer than limit seconds.
    """
    deadline = time.monotonic() + limit
    while True:
        RUN.mkdir(parents=True, exist_ok=True)
        handle = os.open(RUN, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have removed the directory since.
            if RUN.exists() and os.fstat(handle).st_ino == RUN.stat().st_ino:
                break
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(handle)
                raise LabError(
                    f"locked for {limit:.0f} s: another lab is being created or removed"
                ) from None
            time.sleep(0.1)
        os.close(handle)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            RUN.rmdir()
        os.close(handle)


def mounts_below(path: Path) -> list[str]:
    """Return the mount points at and below a path, the deepest first."""
    found = []
    for line in read(Path("/proc/self/mountinfo")).splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if point == str(path) or point.startswith(f"{path}/"):
            found.append(point)
    return found[::-1]


def unmount_below(path: Path) -> None:
    """Unmount everything at and below a path.

    :raises LabError: if something stays mounted.
    """
    for point in mounts_below(path):
        run("umount", point)
