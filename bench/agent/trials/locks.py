"""Locks on settings: what a trial has changed on a host is its own until it is restored.

If two trials changed the same setting, each would restore the other's value. So a process that
changes a setting holds a lock (flock(2)) on a file in :data:`FOLDER`. The file is named after the
setting and says which process holds it. It is removed with its lock. If a killed process leaves its
file, no process holds a lock on it, and it blocks nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import Dict, Optional, Tuple

from bench.agent.stage import Misuse

FOLDER = "/run"
"""Each host has its own, and it is empty after a boot (hier(7)): like the settings."""

PATIENCE = 1.0
"""Seconds for a holder to write its pid and owner."""


class Locks:
    """Locks of one process, by setting."""

    def __init__(self, owner: str = "") -> None:
        """Start without locks.

        :param owner: processes of one owner do not refuse one another; empty: this process alone

        Of one owner's processes, the first to change a setting has to be the last to restore it.
        """
        self._owner = owner
        self._held: Dict[str, int] = {}

    def take(self, what: str, scope: str) -> None:
        """Lock a setting that is going to be changed, unless the owner has it locked already.

        :param what: the setting in words, one line
        :param scope: what distinguishes it from others of that name
        :raises Misuse: if another owner has changed it.
        """
        path = f"{FOLDER}/connlab-guard.{_named(scope)}.{_named(what)}.lock"
        until = time.monotonic() + PATIENCE
        while path not in self._held:
            number = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(number)
                os.close(number)
                if holder and self._owner and holder[1] == self._owner:
                    return
                if holder or time.monotonic() > until:
                    by = f"process {holder[0]}" if holder else "a process"
                    raise Misuse(
                        f"{what}: changed by {by} of another experiment: wait until it ends"
                    ) from None
                time.sleep(0.01)
            else:
                if _same(number, path):
                    os.ftruncate(number, 0)
                    os.write(number, f"{os.getpid()} {self._owner}\n".encode())
                    self._held[path] = number
                else:  # its holder has removed it since it was opened
                    os.close(number)

    def give_back(self) -> None:
        """Release all locks."""
        while self._held:
            path, number = self._held.popitem()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # first: a process that locks it from now on sees that it is gone
            os.close(number)


def namespace() -> str:
    """Return a name for this process's network namespace (namespaces(7))."""
    return f"net-{os.stat('/proc/self/ns/net').st_ino}"


def _named(text: str) -> str:
    return text.replace("/", "~").replace(" ", "_")


def _holder(number: int) -> Optional[Tuple[int, str]]:
    """Return process and owner; None if they are not written yet, or the lock was just released.

    Until they are written, the text of a killed process may be there.
    """
    line = os.pread(number, 256, 0).decode("ascii", "replace")
    pid, _, owner = line.strip().partition(" ")
    if not line.endswith("\n") or not os.path.exists(f"/proc/{pid}"):
        return None
    return int(pid), owner


def _same(number: int, path: str) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(number), there)
