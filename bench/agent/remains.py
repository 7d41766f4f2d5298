"""What is left of an agent that was told to stop: waited for, then killed, then named.

Run on the host by itself, ``python3 -c SOURCE PATH SECONDS PUSHED``, over the connection that the
agent was pushed over; PUSHED is :data:`bench.wire.PUSHED`. An agent, its workers and its trials'
children all have the pushed file's path as an argument, and no other process has: the controller
has drawn its name for this agent alone, and mkdir(1) refuses one that is there. Prints the process
numbers that are still there, and whether the file is.
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

SUDO_SECONDS = 3.0
"""For sudo(8) to run kill(1)."""


def of(path: str) -> List[int]:
    """Numbers of the processes that were started with this path as an argument.

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
    """Whether a process was started with this path as an argument, and has not ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return path.encode() in file.read().split(b"\0")
    except OSError:
        return False


def gone(path: str, seconds: float) -> List[int]:
    """Wait for that long until there are none; returns those that there are still."""
    until = time.monotonic() + seconds
    while True:
        left = of(path)
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.02)


def kill(path: str, pids: Iterable[int]) -> None:
    """End those of the processes that are still of this path at once, root's by sudo(8)."""
    roots: List[str] = []
    for pid in pids:
        if not is_of(pid, path):  # its number may be another's by now
            continue
        try:
            os.kill(pid, signal.SIGKILL)
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
