"""Clean-up after an agent that was told to stop: wait for its processes, kill, report.

The controller runs this file by itself on the host, ``python3 -c SOURCE PATH SECONDS PUSHED``, over
the connection that the agent was pushed over. PUSHED is :data:`bench.wire.PUSHED`.

An agent, its workers and its trials' children all have the pushed file's path as an argument. The
tools that they have started have it as the value of :data:`MARK`. No other process has it: the
controller has drawn the path at random for this agent alone, and mkdir(1) refuses one that exists.
The output lists the pids of the processes that are still there, and tells whether the directory is.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import Iterable, List

DYING_SECONDS = 5.0
"""Seconds for a killed process to free its memory."""

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.25
"""Seconds between two looks, longer each time: many hosts may be namespaces of one machine, and
each look reads all its processes."""

MARK = "CONNLAB_AGENT"
"""Environment variable of everything that an agent starts: the path that the agent was pushed
to."""

SUDO_SECONDS = 3.0
"""Seconds for sudo(8) to run kill(1)."""


def of(path: str) -> List[int]:
    """Return the pids of the processes that belong to the agent with this path.

    This process and its ancestors are left out: timeout(1) and sudo(8) have the command that they
    run, path included, among their arguments.
    """
    own = ancestry(os.getpid())
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in numbers if pid not in own and is_of(pid, path)]


def ancestry(pid: int) -> List[int]:
    """Return the pids of a process, its parent, its parent's parent, and so on."""
    found: List[int] = []
    while pid > 0 and pid not in found:
        found.append(pid)
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            break
    return found


def is_of(pid: int, path: str) -> bool:
    """Return whether a running process belongs to the agent with this path.

    It was started with the path as an argument, or by such a process. Only root can read the
    environments of root's processes: tools run by sudo(8) end by themselves.
    """
    return path.encode() in _words(pid, "cmdline") or (
        f"{MARK}={path}".encode() in _words(pid, "environ")
    )


def _words(pid: int, name: str) -> List[bytes]:
    """Return the arguments of a process, or its environment (proc(5)); empty if it has ended."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def gone(path: str, seconds: float) -> List[int]:
    """Wait until no process is left, for at most ``seconds``; return the pids that are left."""
    until = time.monotonic() + seconds
    pause = FIRST_PAUSE
    while True:
        left = of(path)
        if not left or time.monotonic() > until:
            return left
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_PAUSE)


def kill(path: str, pids: Iterable[int]) -> None:
    """Kill those of the processes that still belong to this path, root's by sudo(8)."""
    roots: List[str] = []
    for pid in pids:
        try:
            _end(pid, path)
        except PermissionError:
            roots.append(str(pid))
        except OSError:
            pass  # it has ended
    if roots:
        quiet = subprocess.DEVNULL
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.call(
                ["sudo", "-n", "kill", "-KILL", *roots],
                stdin=quiet,
                stdout=quiet,
                stderr=quiet,
                timeout=SUDO_SECONDS,
            )


def _end(pid: int, path: str) -> None:
    """Kill a process if it still belongs to this path. :raises OSError: if that is refused.

    Its pid may belong to another process by now. So a descriptor of it (pidfd_open(2), Linux 5.3)
    is opened before the check, and used for the kill.
    """
    fd = None
    with contextlib.suppress(AttributeError, OSError):
        fd = os.pidfd_open(pid)
    try:
        if not is_of(pid, path):
            return
        if fd is None:
            os.kill(pid, signal.SIGKILL)
        else:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    finally:
        if fd is not None:
            os.close(fd)


def main() -> None:
    """Clean up after the agent at the path."""
    path, seconds, pushed = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    if not re.fullmatch(pushed, path):
        sys.exit(f"path: got {path!r}, expected that of a pushed agent")
    left = gone(path, seconds)
    until = time.monotonic() + DYING_SECONDS
    while left and time.monotonic() < until:  # again, for processes forked meanwhile
        kill(path, left)
        left = gone(path, 0.5)
    folder = os.path.dirname(path)
    with contextlib.suppress(OSError):
        os.unlink(path)
    with contextlib.suppress(OSError):
        os.rmdir(folder)
    print(json.dumps({"processes": left, "folder": os.path.lexists(folder)}))


if __name__ == "__main__":
    main()
