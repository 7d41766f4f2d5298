"""Machine-wide limits that hosts need, and their restoration when the last lab is removed."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

from ansible.module_utils.connlab_base import RUN, read, write
from ansible.module_utils.connlab_layout import LabError
from ansible.module_utils.connlab_network import remove_netns_directory
from ansible.module_utils.connlab_processes import cgroups

NSPAWN = Path("/run/systemd/nspawn")
NSPAWN_MARK = RUN / "nspawn-made"
"""Names the directory that the first lab's systemd-nspawn(1) created; the last lab removes it."""
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_MARK = RUN / "inotify"
"""The original limit and the one raised for the labs; the last lab restores the original."""
INOTIFY_PER_HOST = 8
"""Instances per host; 7 counted on Debian 12 (systemd, the login's user manager, dbus, logind)."""
INOTIFY_MACHINE = 64
"""Instances for root's own processes on the machine: half of the kernel's default of 128."""
CAP_SYS_RESOURCE = 24
"""Bit of the capability that lets a process raise its hard limits (linux/capability.h)."""


def nofile_limit() -> int:
    """Return the hard RLIMIT_NOFILE that this machine can grant a host.

    With CAP_SYS_RESOURCE that is fs.nr_open, without it this process's own limit (setrlimit(2)).
    """
    ours = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for line in read(Path("/proc/self/status")).splitlines():
        if line.startswith("CapEff:") and int(line.split()[1], 16) >> CAP_SYS_RESOURCE & 1:
            return max(ours, int(read(Path("/proc/sys/fs/nr_open")) or ours))
    return ours


def allow_inotify(hosts: set[str]) -> None:
    """Raise root's limit of inotify instances for the hosts of all labs; never lower it.

    All hosts' systemds count as one user. A host that gets no instance does not boot ("Failed to
    allocate manager object").

    :param hosts: names of the cgroups of the hosts that will be started.
    :raises LabError: if the limit cannot be raised.
    """
    there = {path.name for top in cgroups("") for path in top.glob("*.connlab")}
    wanted = INOTIFY_MACHINE + INOTIFY_PER_HOST * len(there | hosts)
    now = int(INOTIFY.read_text())
    if now >= wanted:
        return
    found = (read(INOTIFY_MARK).split() or [str(now)])[0]
    write(INOTIFY_MARK, f"{found} {wanted}\n")
    try:
        INOTIFY.write_text(str(wanted))
    except OSError as refused:
        raise LabError(f"{INOTIFY}: {now}, needs {wanted}: {refused.strerror}") from None


def restore_inotify() -> None:
    """Restore the original limit, unless another user or program has changed it."""
    found, _, ours = read(INOTIFY_MARK).strip().partition(" ")
    if ours and INOTIFY.read_text().strip() == ours:
        INOTIFY.write_text(found)
    INOTIFY_MARK.unlink(missing_ok=True)


def leave_as_found() -> None:
    """Undo the changes that labs made to the machine, once the last lab is removed."""
    if list(RUN.glob("*.owner")):
        return
    restore_inotify()
    remove_netns_directory()
    for text in read(NSPAWN_MARK).splitlines():
        top = Path(text)
        with contextlib.suppress(OSError):
            for directory, _, _ in os.walk(top, topdown=False):
                os.rmdir(directory)
    if NSPAWN_MARK.exists() and not NSPAWN.exists():
        NSPAWN_MARK.unlink()


def mark_nspawn() -> None:
    """Record the topmost directory that systemd-nspawn(1) is about to create for its files."""
    missing = [each for each in (NSPAWN.parent, NSPAWN) if not each.exists()]
    if missing:
        write(NSPAWN_MARK, f"{missing[0]}\n")


def remove_nspawn_traces(machine: str, root_inodes: set[int]) -> None:
    """Remove the files of a machine that a killed systemd-nspawn(1) leaves in /run/systemd/nspawn.

    :param root_inodes: inode numbers that the machine's root directory may have had; the last part
        of the lock file's name (image_path_lock in systemd's src/shared/discover-image.c).
    """
    for trace in NSPAWN.glob(f"*/{machine}"):
        with contextlib.suppress(OSError):
            trace.rmdir()
    for inode in root_inodes:
        for lock in NSPAWN.glob(f"locks/inode-*:{inode}"):
            lock.unlink(missing_ok=True)
