"""Leftovers of a running program: threads, descriptors, processes, directories."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.hosts.session import Connect
from bench.hosts.transport import Link
from bench.inventory import Host

SETTLE_SECONDS = 15.0
"""Seconds for threads and agents of closed connections to end."""

STILL_SECONDS = 1.0
"""Seconds without a change after which nothing more is expected to end."""

DIRECTORIES = "connlab.*"
"""Directories that agents are pushed to, in ``/tmp``."""


@dataclass(frozen=True)
class Residue:
    """The leftovers of this process, and of agents on hosts; each list is sorted."""

    threads: tuple[str, ...]
    descriptors: tuple[str, ...]
    """Target of each."""
    children: tuple[str, ...]
    directories: tuple[str, ...]
    """Those of this machine by path, those of a host as ``host:path``."""
    agents: tuple[str, ...]
    """``host:pid``"""

    def __str__(self) -> str:
        return ", ".join(f"{len(found)} {name}" for name, found in asdict(self).items())

    def gained(self, before: Residue) -> list[str]:
        """Return what has increased, one line each."""
        lines = []
        for name, now in asdict(self).items():
            then = getattr(before, name)
            if len(now) > len(then):
                more = list(now)
                for known in then:
                    if known in more:
                        more.remove(known)
                lines.append(f"{name}: {len(then)} before and {len(now)} after: {', '.join(more)}")
        return lines


def look(connect: Connect, hosts: Iterable[Host] = ()) -> Residue:
    """Return everything as it is now. :raises LabError: if a host cannot be reached."""
    directories = [str(path) for path in Path("/tmp").glob(DIRECTORIES)]
    agents: list[str] = []
    for host in hosts:
        link = connect(host)
        try:
            found, running = _of_agents(link)
        finally:
            link.close()
        directories += [f"{host.name}:{path}" for path in found]
        agents += [f"{host.name}:{pid}" for pid in running]
    return Residue(
        tuple(sorted(thread.name for thread in threading.enumerate())),
        tuple(sorted(_descriptors())),
        tuple(sorted(_children())),
        tuple(sorted(directories)),
        tuple(sorted(agents)),
    )


def _of_agents(link: Link) -> tuple[list[str], list[str]]:
    """Return the directories and processes of agents on a host."""
    directories = link.run(["sh", "-c", f"ls -d /tmp/{DIRECTORIES} 2>/dev/null || true"])
    # The brackets keep the pattern from matching its own command line.
    processes = link.run(["sh", "-c", "pgrep -f '[c]onnlab[.].*/agent[.]pyz' || true"])
    return directories.split(), processes.split()


def _descriptors() -> list[str]:
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:  # the descriptor of the listing itself
            continue
        found.append(target.partition(":[")[0])  # sockets and pipes without their numbers
    return found


def _children() -> list[str]:
    lists = Path("/proc/self/task").glob("*/children")
    return [pid for path in lists for pid in path.read_text().split()]


def settled(connect: Connect, hosts: Iterable[Host] = ()) -> Residue:
    """Return everything once it has been unchanged for :data:`STILL_SECONDS`, or time is up."""
    there = list(hosts)
    began = same = time.monotonic()
    now = look(connect, there)
    while time.monotonic() - same < STILL_SECONDS and time.monotonic() - began < SETTLE_SECONDS:
        time.sleep(0.1)
        before, now = now, look(connect, there)
        if now != before:
            same = time.monotonic()
    return now


def left(before: Residue, connect: Connect, hosts: Iterable[Host] = ()) -> list[str]:
    """Return what has increased and does not end within :data:`SETTLE_SECONDS`, one line each."""
    there = list(hosts)
    ends = time.monotonic() + SETTLE_SECONDS
    while (gained := look(connect, there).gained(before)) and time.monotonic() < ends:
        time.sleep(0.1)
    return gained
