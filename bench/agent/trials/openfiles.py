"""Opens files until something refuses another, and asks for limits that may be refused.

On the way out every file is closed and every process ended; the limits are those of this process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import subprocess
import sys
import time
from typing import Any, Dict, List, Tuple

from bench.agent import probe
from bench.agent.stage import Misuse, Stage

PATIENCE = 30
"""Seconds for a process of our own to have opened all that it is let."""

_ONE = """
import errno, os, sys
own = len(os.listdir("/proc/self/fd")) - 1
held = []
try:
    while len(held) < int(sys.argv[1]):
        held.append(os.open("/dev/null", os.O_RDONLY))
    print(own + len(held), "")
except OSError as error:
    print(own + len(held), errno.errorcode[error.errno])
sys.stdout.flush()
sys.stdin.read()
"""
"""What each of several processes does: open all it may, tell, hold until its input ends."""


class _Limit(ctypes.Structure):
    _fields_ = [("soft", ctypes.c_ulong), ("hard", ctypes.c_ulong)]


_libc = ctypes.CDLL(None, use_errno=True)


class Files:
    """Open files of this process, and the kernel's count of all."""

    def __init__(self) -> None:
        # Open from the start: where no file is left, nobody could open it.
        self._count = os.open("/proc/sys/fs/file-nr", os.O_RDONLY)
        self._held: List[int] = []

    def fill(self, most: int) -> Dict[str, Any]:
        """Open files until one is refused, ``most`` at most; ``errno`` is empty if none was."""
        before = own()
        refused = ""
        try:
            while len(self._held) < most:
                self._held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            refused = errno.errorcode[error.errno or 0]
        return {
            "opened": len(self._held),
            "own": before + len(self._held),
            "errno": refused,
            "files": self.all(),
        }

    def all(self) -> int:
        """Open files of the whole kernel (fs.file-nr, its first number)."""
        return int(os.pread(self._count, 64, 0).split()[0])

    def drop(self) -> None:
        """Close what was opened."""
        while self._held:
            os.close(self._held.pop())


def own() -> int:
    """Descriptors that this process has open."""
    return len(os.listdir("/proc/self/fd")) - 1  # less that of the listing itself


def limit(soft: int, hard: int) -> str:
    """Set RLIMIT_NOFILE; returns the errno's name if it is refused (setrlimit(2)).

    :mod:`resource` raises the same exception for whatever the kernel answered.
    """
    pair = _Limit(soft, hard)
    if _libc.setrlimit(resource.RLIMIT_NOFILE, ctypes.byref(pair)):
        return errno.errorcode[ctypes.get_errno()]
    return ""


def together(processes: int, most: int) -> List[Tuple[int, str]]:
    """What several processes have open at one time, each with the errno that ended it."""
    children = []
    try:
        for _ in range(processes):
            children.append(
                subprocess.Popen(
                    [sys.executable, "-I", "-c", _ONE, str(most)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        ends = time.monotonic() + PATIENCE
        return [_told(child, ends) for child in children]
    finally:
        for child in children:
            if child.stdin:
                child.stdin.close()
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            if child.stdout:
                child.stdout.close()


def _told(child: subprocess.Popen[str], ends: float) -> Tuple[int, str]:
    """What a process has open and why no more. :raises OSError: if it does not tell in time."""
    assert child.stdout
    ready, _, _ = select.select([child.stdout], [], [], max(0.0, ends - time.monotonic()))
    if not ready:
        raise OSError(f"process {child.pid}: did not tell what it opened within {PATIENCE:g} s")
    number, _, refused = child.stdout.readline().strip().partition(" ")
    if not number:
        raise OSError(f"process {child.pid}: ended before it told what it opened")
    return int(number), refused


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Take steps until the end of the input.

    ``limit`` [soft, hard]; ``fill`` most; ``together`` [processes, most]; ``drop``. An answer has
    ``limit``, the errno or nothing, what :meth:`Files.fill` says, and ``each`` [[open, errno]].
    """
    if args:
        raise Misuse(f"openfiles: got {', '.join(sorted(args))}, expected no arguments")
    files = Files()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    stage.tell(
        uid=os.geteuid(),
        soft=soft,
        hard=hard,
        files=files.all(),
        nr_open=int(probe.text("/proc/sys/fs/nr_open")),
    )
    try:
        while True:
            step = stage.step() or {}
            told: Dict[str, Any] = {}
            if "limit" in step:
                told["limit"] = limit(*(int(value) for value in step["limit"]))
            if "together" in step:
                told["each"] = together(*(int(value) for value in step["together"]))
            if "fill" in step:
                told.update(files.fill(int(step["fill"])))
            if step.get("drop"):
                files.drop()
            stage.tell(**told)
    finally:
        files.drop()
