"""What is left of an agent that was told to stop: waited for, then killed, then named.

Run on the host by itself, ``python3 -c SOURCE PATH SECONDS PUSHED``, over the connection that the
agent was pushed over; PUSHED is :data:`bench.wire.PUSHED`. An agent, its workers and its trials'
children all have the pushed file's path as an argument, and the tools that they have started have
it as the value of :data:`MARK`. No other process has: the controller has drawn its name for this
agent alone, and mkdir(1) refuses one that is there. Prints the process numbers that are still
there, and whether the file is.
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
"""For a killed process to let go of its memory."""

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.25
"""Between two looks, s, longer each time: many hosts may be namespaces of one machine, and each
look reads all its processes."""

MARK = "CONNLAB_AGENT"
"""Environment variable of all that an agent starts: the path that the agent was pushed to."""

SUDO_SECONDS = 3.0
"""For sudo(8) to run kill(1)."""


def of(path: str) -> List[int]:
    """Numbers of the processes that are of the agent with this path.

    Not this one's own, nor of those that it was started by: timeout(1) and sudo(8) have all that
    they run among their arguments.
    """
    own = ancestry(os.getpid())
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in numbers if pid not in own and is_of(pid, path)]


def ancestry(pid: int) -> List[int]:
    """A process, its parent, its parent's parent, and so on."""
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
    """Whether a process was started with this path as an argument, or by one that was, and has not
    ended. Root's environments are root's to read: tools run by sudo(8) end by themselves."""
    return path.encode() in _words(pid, "cmdline") or (
        f"{MARK}={path}".encode() in _words(pid, "environ")
    )


def _words(pid: int, name: str) -> List[bytes]:
    """The arguments of a process, or its environment (proc(5)); none if it has ended."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def gone(path: str, seconds: float) -> List[int]:
    """Wait for that long until there are none; returns those that there are still."""
    until = time.monotonic() + seconds
    pause = FIRST_PAUSE
    while True:
        left = of(path)
        if not left or time.monotonic() > until:
            return left
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_PAUSE)


def kill(path: str, pids: Iterable[int]) -> None:
    """End those of the processes that are still of this path at once, root's by sudo(8)."""
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
    """Kill a process that is still of this path. :raises OSError: if that is refused.

    Its number may be another's by now. A descriptor of it (pidfd_open(2), Linux 5.3) is had before
    it is looked at, so that it is not another's when it is killed either.
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
    while left and time.monotonic() < until:  # again, for those that were forked meanwhile
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
