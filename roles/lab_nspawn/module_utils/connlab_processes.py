"""A host's processes: pid files, cgroups, signals.

Every function also handles leftovers, such as a pid that another process has by now, or a cgroup
without processes.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path

from ansible.module_utils.connlab_base import read, write
from ansible.module_utils.connlab_layout import LabError


def alive(pid_file: Path) -> int | None:
    """Return the pid in a pid file, or None if that process is gone or is another one by now."""
    known = parse_pid_file(read(pid_file))
    if known is None:
        return None
    pid, started = known
    stat = read(Path(f"/proc/{pid}/stat"))
    if not stat or start_time(stat) != started or stat.rpartition(")")[2].split()[0] == "Z":
        return None
    return pid


def write_pid_file(path: Path, pid: int) -> None:
    """Write pid and start time; the start time shows whether the pid was reused."""
    write(path, f"{pid} {start_time(read(Path(f'/proc/{pid}/stat')))}\n")


def cgroups(name: str) -> list[Path]:
    """Return the directories of a cgroup of this name, whether they exist or not."""
    return [Path(root) / name for root in cgroup_roots(read(Path("/proc/mounts")))]


def members(cgroup: list[Path]) -> set[int]:
    """Return the pids in a cgroup and below it."""
    found: set[int] = set()
    for top in cgroup:
        for directory, _, _ in os.walk(top):
            # A threaded or vanishing cgroup cannot be read; its processes are in the others.
            with contextlib.suppress(OSError):
                text = Path(directory, "cgroup.procs").read_text()
                found |= {int(pid) for pid in text.split() if pid != "0"}
    return found


def terminate(pids: set[int], command: str) -> None:
    """Send SIGTERM to those of the pids that run a command of this name."""
    for pid in pids:
        if read(Path(f"/proc/{pid}/comm")).strip() == command:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def kill(pids: set[int]) -> None:
    """Send SIGKILL to the pids, but never to the caller itself or to PID 1."""
    for pid in pids - {1, os.getpid()}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def make_cgroup(cgroup: list[Path]) -> None:
    """Create a cgroup in every hierarchy that needs it."""
    if not cgroup:
        raise LabError("no systemd cgroup hierarchy is mounted: systemd-nspawn needs one")
    for top in cgroup:
        top.mkdir(exist_ok=True)


def remove_cgroup(cgroup: list[Path]) -> None:
    """Remove a cgroup without processes, its descendants first.

    :raises LabError: if it does not become empty; processes die some time after a SIGKILL.
    """
    for top in cgroup:
        deadline = time.monotonic() + 5
        while top.exists():
            try:
                for directory, _, _ in os.walk(top, topdown=False):
                    os.rmdir(directory)
            except OSError as busy:
                if time.monotonic() > deadline:
                    raise LabError(f"{top}: {busy.strerror}") from None
                time.sleep(0.05)


def start_time(stat: str) -> int:
    """Return the start time of a process, in clock ticks since boot.

    It is field 22 of /proc/PID/stat (proc(5)). The second field is the command in brackets, and may
    itself contain blanks and brackets.
    """
    return int(stat.rpartition(")")[2].split()[19])


def parse_pid_file(text: str) -> tuple[int, int] | None:
    """Return pid and start time from the text of a pid file, or None if it is not valid."""
    match = re.fullmatch(r"(\d+) (\d+)\s*", text)
    return (int(match[1]), int(match[2])) if match else None


def cgroup_roots(mounts: str) -> list[str]:
    """Return the hierarchies in which a host needs its own cgroup, from /proc/mounts.

    They are those that an init manages: cgroup v2, and the named v1 hierarchy of systemd. The v1
    controllers are left alone, because a memory cgroup would account for every socket and slow it
    down.
    """
    roots = []
    for line in mounts.splitlines():
        _, path, kind, options = line.split()[:4]
        named = kind == "cgroup" and "name=systemd" in options.split(",")
        if (kind == "cgroup2" or named) and path not in roots:
            roots.append(path)
    return roots
