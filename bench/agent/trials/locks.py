"""What a trial has changed on a host is its own until it is put back.

Two that changed the same setting would put back each other's values. So whoever changes one holds
a lock (flock(2)) on a file in :data:`FOLDER` that is named after it and says who holds it. A file
goes with its lock; one that is left by a process that was killed is locked by nobody, and in
nobody's way.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import Dict, Optional, Tuple

from bench.agent.stage import Misuse

FOLDER = "/run"
"""Of each host its own, and gone when it boots (hier(7)): as are the settings."""

PATIENCE = 1.0
"""Seconds that a holder has for writing who it is."""


class Locks:
    """Locks of one process, by what they are on."""

    def __init__(self, owner: str = "") -> None:
        """``owner``: whose processes do not refuse one another; empty: this one alone.

        Of one owner the first to change a setting has to be the last to put it back.
        """
        self._owner = owner
        self._held: Dict[str, int] = {}

    def take(self, what: str, scope: str) -> None:
        """Have what is to be changed for ourselves, unless the owner has it already.

        :param what: in words, one line
        :param scope: what sets it apart from others of that name
        :raises Misuse: if another owner has it changed.
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
                        f"{what}: changed by {by} of another experiment, expected to be nobody's: "
                        "wait for its end"
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
        """Let others have everything."""
        while self._held:
            path, number = self._held.popitem()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # first: who locks it from now on sees that it is gone
            os.close(number)


def namespace() -> str:
    """Names this process's network namespace among those of the kernel (namespaces(7))."""
    return f"net-{os.stat('/proc/self/ns/net').st_ino}"


def _named(text: str) -> str:
    return text.replace("/", "~").replace(" ", "_")


def _holder(number: int) -> Optional[Tuple[int, str]]:
    """Process and owner; none if it has not written that yet, or has just let go.

    Until it has, what one that was killed has left may be there.
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
