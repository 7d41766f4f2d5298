"""Worker processes: how many there are, and how they start, wait, get orders, and die.

A waiting worker is blocked in one system call and costs nothing. The parent wakes exactly one
worker, by a byte in that worker's own pipe. The worker rings back on one common pipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import resource
import signal
import struct
import sys
import threading
import time
import traceback
from typing import Callable, Dict, List, NamedTuple, Set, Tuple, Union

RESERVE = 64
"""Descriptors of a worker that are not connections: pipes, epoll, listeners, libraries."""

SPARE = 8
"""Tasks left for the agent when they are short: for its doorkeeper, for a thread that gathers
evidence, and for the tools that this thread starts, each with sudo(8) before it."""

PASS, DONE = b"P", b"D"
"""What a worker rings: it hands on its turn but has work left; it has carried out its order."""

BELL = struct.Struct("<Hc")
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # include/uapi/linux/prctl.h
OOM_SCORE = b"900"


class TooMany(ValueError):
    """More workers than this process can have pipes for."""


class Shortage(OSError):
    """The kernel refused another task, or a pipe to one."""

    def __init__(self, call: str, code: int, what: str, started: int = 0) -> None:
        name = errno.errorcode.get(code, f"E{code}")
        limit = {
            "EAGAIN": "pids limit (cgroup pids.max, RLIMIT_NPROC, kernel.pid_max)",
            "ENOMEM": "memory",
            "EMFILE": "nofile",
            "ENFILE": "fs.file-max",
        }.get(name, os.strerror(code))
        super().__init__(code, f"{call}: {name} {what}, {limit}")
        self.started = started
        """Workers that had been started. They have been ended."""

    def __str__(self) -> str:
        return str(self.strerror)


class Death(NamedTuple):
    """How a worker ended, or that it was stopped and so opens and closes nothing any more."""

    worker: int
    pid: int
    status: int

    def __str__(self) -> str:
        if os.WIFSTOPPED(self.status):
            number = os.WSTOPSIG(self.status)
            return f"worker {self.worker} (pid {self.pid}) was stopped: signal {number}"
        code = os.waitstatus_to_exitcode(self.status)
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"worker {self.worker} (pid {self.pid}) died: {how}"


def nofile_found() -> Tuple[int, int]:
    """Return the limit on open files of this process: (soft, hard)."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def open_files(nofile: Union[str, int]) -> int:
    """Set the limit on open files; return how many descriptors a process can have now.

    With ``hard`` the soft limit is first raised as far as possible. With a number it is set to that
    number, as far as the hard limit allows. A hard limit above fs.nr_open cannot even be written
    back (kernel/sys.c ``do_prlimit``: EPERM). In that case both are set to fs.nr_open: no table of
    descriptors grows beyond it (fs/file.c ``expand_files``).
    """
    if nofile == "hard":
        hard = nofile_found()[1]
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except ValueError:  # what the resource module raises on EPERM
            most = min(hard, _nr_open())
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    elif nofile != "soft":
        hard = nofile_found()[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(int(nofile), hard), hard))
    return min(nofile_found()[0], _nr_open())


def _nr_open() -> int:
    try:
        with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
            return int(file.read())
    except OSError:
        return sys.maxsize


def capacity(files: int, extra: int = 0) -> int:
    """Return how many connections one worker can hold: its descriptors minus reserve and ``extra``.

    :raises TooMany: if nothing is left.
    """
    room = files - RESERVE - extra
    if room < 1:
        raise TooMany(f"the limit of {files} open files leaves no room for connections")
    return room


def how_many(share: int, room: int, files: int, wanted: int = 0, limit: bool = False) -> int:
    """Return how many workers ``share`` connections need at ``room`` each, at least one per core.

    :param files: descriptors of the parent, which holds a pipe for each worker
    :param wanted: the number, if it is given
    :param limit: accept as many as the parent can have, if it cannot have that many
    :raises TooMany: if the parent cannot hold one pipe for each.
    """
    count = wanted or max(os.cpu_count() or 1, -(-share // room))
    most = files - RESERVE
    if count <= most:
        return count
    if limit:
        return most
    asked = f"{count} workers" if wanted else f"{share} connections need {count} workers of {room}"
    raise TooMany(f"{asked}, but the limit of {files} open files allows {most}: raise nofile")


Body = Callable[[int, int, Callable[[bytes], None]], None]
"""What a worker runs: (its number, the descriptor of its orders, a function to ring the bell)."""


class Crew:
    """The workers of one agent. Must be forked before any thread is started."""

    def __init__(self, count: int, body: Body) -> None:
        """Fork ``count`` workers.

        :raises Shortage: if the kernel refuses one; then none is left.
        """
        self.count = count
        self.pids: Dict[int, int] = {}
        self._stopped: Set[int] = set()
        self._orders: List[int] = []
        self._rest = b""
        self.bell, self._ring = os.pipe()
        os.set_blocking(self.bell, False)
        gc.collect()
        gc.freeze()  # the collector then leaves pages shared with the parent alone
        for worker in range(count):
            try:
                self._fork(worker, body)
            except Shortage:
                self.disband()
                raise

    def _fork(self, worker: int, body: Body) -> None:
        try:
            reading, writing = os.pipe()
        except OSError as error:
            raise self._shortage("pipe", error, worker) from error
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(reading)
            os.close(writing)
            raise self._shortage("fork", error, worker) from error
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

    def _shortage(self, call: str, error: OSError, worker: int) -> Shortage:
        return Shortage(call, error.errno or 0, f"at worker {worker + 1} of {self.count}", worker)

    def _rings(self, worker: int, what: bytes) -> None:
        os.write(self._ring, BELL.pack(worker, what))

    def tell(self, worker: int, order: bytes) -> None:
        """Wake one worker with a one-byte order; nothing happens if the worker is dead."""
        try:
            os.write(self._orders[worker], order)
        except BrokenPipeError:
            return

    def heard(self) -> List[Tuple[int, bytes]]:
        """Return what has been rung since the last call: (worker, PASS or DONE)."""
        try:
            data = self._rest + os.read(self.bell, 65536)
        except BlockingIOError:
            return []
        whole = len(data) - len(data) % BELL.size
        self._rest = data[whole:]
        return list(BELL.iter_unpack(data[:whole]))

    def deaths(self) -> List[Death]:
        """Return the workers that ended or stopped since the last call; kill the stopped ones."""
        self._stopped = {pid for pid in self._stopped if not os.waitpid(pid, os.WNOHANG)[0]}
        found = []
        for pid, worker in list(self.pids.items()):
            done, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if not done:
                continue
            del self.pids[pid]  # at once: nothing may wait for it any more
            if os.WIFSTOPPED(status):
                os.kill(pid, signal.SIGKILL)
                self._stopped.add(pid)
            found.append(Death(worker, pid, status))
        return found

    def cpu_seconds(self) -> float:
        """Return the user and system time of this process and of the workers that are alive.

        The clock of a process has the number ``~pid << 3 | 2`` (include/linux/posix-timers.h
        ``MAKE_PROCESS_CPUCLOCK``; clock_getcpuclockid(3) returns it). It counts nanoseconds, while
        /proc/<pid>/stat counts hundredths of a second.
        """
        spent = time.process_time()
        for pid in self.pids:
            with contextlib.suppress(OSError):  # it has died
                spent += time.clock_gettime(~pid << 3 | 2)
        return spent

    def kill(self) -> None:
        """Kill the workers that are left, and wait for none."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)

    def disband(self) -> None:
        """Kill the workers, wait for them, and close all pipes."""
        self.kill()
        for pid in self.pids:
            os.waitpid(pid, 0)
        self.pids.clear()
        for fd in (*self._orders, self.bell, self._ring):
            os.close(fd)
        self._orders.clear()


def muster(start: Callable[[int], None], count: int, limit: bool) -> Dict[int, int]:
    """Start a crew of ``count``, or with ``limit`` one as large as the host allows.

    :param start: starts a crew of that size, or raises :class:`Shortage` and leaves none
    :return: what the kernel refused meanwhile, errno to number of times
    :raises Shortage: if the kernel refuses a worker, without ``limit`` or at the very first.
    """
    refused: Dict[int, int] = {}
    while True:
        try:
            start(count)
            return refused
        except Shortage as short:
            if not limit or not short.started:
                raise
            count = max(1, short.started - SPARE)
            code = short.errno or 0
            refused[code] = refused.get(code, 0) + 1


def _settle(worker: int, parent: int) -> None:
    """Set up a new child as a worker: it dies with its parent and has none of its streams."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # the parent died between fork and prctl
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
    # A worker's sockets hardly show in its RSS. Without this the OOM killer would choose another
    # process.
    with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
        file.write(OOM_SCORE)


def begin(thread: threading.Thread) -> None:
    """Start a thread. :raises Shortage: if the kernel refuses it."""
    try:
        thread.start()
    except RuntimeError as error:  # all that Python says about clone(2): "can't start new thread"
        raise Shortage("clone", errno.EAGAIN, "for a thread") from error
