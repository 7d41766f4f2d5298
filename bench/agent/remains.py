"""What is left of an agent that was told to stop: waited for, then killed, then named.

Run on the host by itself, ``python3 -c SOURCE PATH SECONDS``, over the connection that the agent
was pushed over. An agent, its workers and its trials' children all have the pushed file's path as
an argument, and no other process has: mktemp(1) has made it for this agent alone. Prints the
process numbers that are still there, and whether the file is.
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
from typing import Iterable, List, Set

PUSHED = re.compile(r"/tmp/connlab\.[A-Za-z0-9_]{8,10}/agent\.pyz\Z")
"""As in bench/agent/home.py."""

DYING_SECONDS = 5.0
"""For a killed process to let go of its memory."""


def lineage() -> Set[int]:
    """Numbers of this process and those that it comes from: the path is their argument too."""
    found = set()
    pid = os.getpid()
    while pid > 1 and pid not in found:
        found.add(pid)
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read().rpartition(b")")[2].split()[1])  # ppid (proc(5))
        except OSError:
            break
    return found


def of(path: str) -> List[int]:
    """Numbers of the processes that were started with this path as an argument."""
    wanted = path.encode()
    found = []
    ours = lineage()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in ours:
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if wanted in words:
            found.append(int(name))
    return found


def gone(path: str, seconds: float) -> List[int]:
    """Wait for that long until there are none; returns those that there are still."""
    until = time.monotonic() + seconds
    while True:
        left = of(path)
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.02)


def kill(pids: Iterable[int]) -> None:
    """End processes at once, root's by sudo(8)."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except PermissionError:
            words = ["sudo", "-n", "kill", "-KILL", str(pid)]
            quiet = subprocess.DEVNULL
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.call(words, stdin=quiet, stdout=quiet, stderr=quiet, timeout=5)
        except OSError:
            pass  # it has ended


def main() -> None:
    """Clean up after the agent at the path."""
    path, seconds = sys.argv[1], float(sys.argv[2])
    if not PUSHED.match(path):
        sys.exit(f"path: got {path!r}, expected that of a pushed agent")
    left = gone(path, seconds)
    if left:
        kill(left)
        left = gone(path, DYING_SECONDS)
    folder = os.path.dirname(path)
    with contextlib.suppress(OSError):
        os.unlink(path)
    with contextlib.suppress(OSError):
        os.rmdir(folder)
    print(json.dumps({"processes": left, "folder": os.path.lexists(folder)}))


if __name__ == "__main__":
    main()
