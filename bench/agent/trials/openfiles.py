"""Opens files until one is refused, and asks for limits that may be refused.

At the end every file is closed and every process has ended; the limits are this process's own.
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
"""Seconds for a child process to open all the files that it can."""

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
"""The program of each child: open as many files as allowed, report, hold them until its input
ends."""


class _Limit(ctypes.Structure):
    _fields_ = [("soft", ctypes.c_ulong), ("hard", ctypes.c_ulong)]


_libc = ctypes.CDLL(None, use_errno=True)


class Files:
    """Open files of this process, and the kernel's count of all open files."""

    def __init__(self) -> None:
        # Opened first: when no file is left, it could not be opened.
        self._count = os.open("/proc/sys/fs/file-nr", os.O_RDONLY)
        self._held: List[int] = []

    def fill(self, most: int) -> Dict[str, Any]:
        """Open files until one is refused, at most ``most``.

        In the result, ``errno`` is empty if none was refused.
        """
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
        """Return the open files of the whole kernel (fs.file-nr, first number)."""
        return int(os.pread(self._count, 64, 0).split()[0])

    def drop(self) -> None:
        """Close the files."""
        while self._held:
            os.close(self._held.pop())


def own() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd")) - 1  # without the descriptor of the listing itself


def limit(soft: int, hard: int) -> str:
    """Set RLIMIT_NOFILE; return the errno's name if it is refused (setrlimit(2)).

    :mod:`resource` raises the same exception for every errno.
    """
    pair = _Limit(soft, hard)
    if _libc.setrlimit(resource.RLIMIT_NOFILE, ctypes.byref(pair)):
        return errno.errorcode[ctypes.get_errno()]
    return ""


def together(processes: int, most: int) -> List[Tuple[int, str]]:
    """Return what several processes hold open at once, each with the errno that ended it."""
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
    """Return what a process has open, and why no more.

    :raises OSError: if it does not report in time, or ended.
    """
    assert child.stdout
    ready, _, _ = select.select([child.stdout], [], [], max(0.0, ends - time.monotonic()))
    if not ready:
        raise OSError(f"process {child.pid}: did not report its open files within {PATIENCE:g} s")
    number, _, refused = child.stdout.readline().strip().partition(" ")
    if not number:
        raise OSError(f"process {child.pid}: ended before it reported its open files")
    return int(number), refused


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Carry out steps until the end of the input.

    A step has ``limit`` [soft, hard], ``fill`` most, ``together`` [processes, most], or ``drop``.
    An answer has ``limit``, the errno's name or "", the result of :meth:`Files.fill`, and ``each``
    [[open, errno]].
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
