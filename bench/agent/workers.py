"""Worker processes: how many, how they start, wait, are told, and die.

A waiting worker is blocked in one system call and costs nothing. The parent wakes exactly the one
that it means, by a byte in that worker's own pipe; the worker rings back on one common pipe.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import struct
import sys
import traceback
from typing import Callable, Dict, List, NamedTuple, Tuple

RESERVE = 64
"""Descriptors of a worker that are not connections: pipes, epoll, listeners, libraries."""

PASS, DONE = b"P", b"D"
"""What a worker rings: it hands on its turn but still has work; it has done what it was told."""

BELL = struct.Struct("<Hc")
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # include/uapi/linux/prctl.h
OOM_SCORE = b"900"


class TooMany(ValueError):
    """More workers than this process can have pipes for."""


class Death(NamedTuple):
    """How a worker ended."""

    worker: int
    pid: int
    status: int

    def __str__(self) -> str:
        code = os.waitstatus_to_exitcode(self.status)
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"worker {self.worker} (pid {self.pid}) died: {how}"


def raise_nofile() -> Tuple[int, int]:
    """Raise the soft limit on open files to the hard one; returns (soft found, hard)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft, hard


def capacity(extra: int = 0) -> int:
    """Connections that one worker can hold: the hard limit less the reserve and ``extra``.

    :raises TooMany: if nothing is left.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    room = hard - RESERVE - extra
    if room < 1:
        raise TooMany(f"the hard limit of {hard} open files leaves no room for connections")
    return room


def how_many(share: int, room: int) -> int:
    """Workers for ``share`` connections at ``room`` each, at least one per core.

    :raises TooMany: if the parent cannot hold one pipe for each.
    """
    count = max(os.cpu_count() or 1, -(-share // room))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - RESERVE
    if count > most:
        raise TooMany(
            f"{share} connections need {count} workers of {room}, but the hard limit of open "
            f"files allows {most}: raise nofile"
        )
    return count


Body = Callable[[int, int, Callable[[bytes], None]], None]
"""What a worker runs: (its number, the descriptor of its orders, ring the parent's bell)."""


class Crew:
    """The workers of one agent. Fork before any thread is started."""

    def __init__(self, count: int, body: Body) -> None:
        self.count = count
        self.pids: Dict[int, int] = {}
        self.bell, self._ring = os.pipe()
        os.set_blocking(self.bell, False)
        self._orders: List[int] = []
        self._rest = b""
        gc.collect()
        gc.freeze()  # the collector then leaves the pages shared with the parent alone
        for worker in range(count):
            self._fork(worker, body)

    def _fork(self, worker: int, body: Body) -> None:
        reading, writing = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid:
            os.close(reading)
            self._orders.append(writing)
            self.pids[pid] = worker
            return
        status = 1
        try:
            for fd in (*self._orders, writing, self.bell):
                os.close(fd)
            _settle(worker, parent)
            body(worker, reading, lambda what: self._rings(worker, what))
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def _rings(self, worker: int, what: bytes) -> None:
        os.write(self._ring, BELL.pack(worker, what))

    def tell(self, worker: int, order: bytes) -> None:
        """Wake one worker with a one-byte order; a dead worker hears nothing."""
        try:
            os.write(self._orders[worker], order)
        except BrokenPipeError:
            return

    def heard(self) -> List[Tuple[int, bytes]]:
        """What has been rung since the last call: (worker, PASS or DONE)."""
        try:
            data = self._rest + os.read(self.bell, 65536)
        except BlockingIOError:
            return []
        whole = len(data) - len(data) % BELL.size
        self._rest = data[whole:]
        return list(BELL.iter_unpack(data[:whole]))

    def deaths(self) -> List[Death]:
        """Workers that ended since the last call."""
        found = []
        for pid, worker in list(self.pids.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self.pids[pid]
                found.append(Death(worker, pid, status))
        return found

    def kill(self) -> None:
        """End the workers that are left, and wait for none."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)


def _settle(worker: int, parent: int) -> None:
    """Make a fresh child a worker: dies with its parent, owns no stream of the agent's."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died between fork and prctl
        os._exit(1)
    libc.prctl(PR_SET_NAME, f"connlab-{worker}".encode(), 0, 0, 0)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    gc.disable()
    # A worker's sockets hardly show in its RSS: without this the OOM killer would look elsewhere.
    with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
        file.write(OOM_SCORE)
