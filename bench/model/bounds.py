"""The model's arithmetic: how many connections each limit lets these hosts hold.

Every limit has the same form (:mod:`bench.model.catalogue`): the amount that exists, the amount
already in use, and the amount that a connection of the run takes. This holds for each host and each
kernel that has the limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from bench.agent.workers import RESERVE
from bench.model.catalogue import CATALOGUE
from bench.model.footprint import FD_BYTES, HELD_BYTES
from bench.results.format import Bound, Side

WORD_BITS = 64
"""Bits per word of a descriptor table's bitmap (BITS_PER_LONG on 64-bit machines)."""


class Room(NamedTuple):
    """A limit and how much of it is in use."""

    limit: int
    used: int


@dataclass(frozen=True)
class Share:
    """One host's part of the run on one side, and its own limits. None: a limit does not apply."""

    host: str
    end: Side
    part: Fraction
    """Part of all connections of which this host holds one end."""
    nofile: int
    """Limit on open files of a process."""
    nr_open: int
    reserve: int
    """Descriptors of a process that are not connections."""
    kernel_bytes: float
    """Slab bytes of one connection's end on this host."""
    workers: int | None = None
    """Number of processes, if the scenario sets it; None: as many as the descriptors allow."""
    watches: int = 0
    """Epoll watches per connection: 1 or 0."""
    tracked: Room | None = None
    """Connection tracking, where it is active."""
    ports: Room | None = None
    """Ports that the kernel may choose from, over all addresses and endpoints."""
    tasks: Room | None = None
    """Tasks of the host's own cgroups."""
    memory_max: Room | None = None
    """The cgroup's memory, bytes."""
    worker_bytes: int = 0
    """Memory of a worker that has not been started yet."""

    @property
    def descriptors(self) -> int:
        """Open files of one process: alloc_fd() stops at the lower of nofile and nr_open.

        A descriptor table has whole words of bits and does not grow beyond fs.nr_open (fs/file.c
        ``alloc_fdtable``): with 4,000 the last descriptor is 3,967.
        """
        return min(self.nofile, self.nr_open // WORD_BITS * WORD_BITS)

    @property
    def room(self) -> int:
        """Connections that one process can hold."""
        return max(0, self.descriptors - self.reserve)

    @property
    def bytes_each(self) -> float:
        """Memory of one connection's end: slab, descriptor table, the agent's and its worker's."""
        worker = self.worker_bytes / self.room if self.room else 0
        return self.kernel_bytes + FD_BYTES + HELD_BYTES + worker


@dataclass(frozen=True)
class Kernel:
    """One running kernel and the hosts that share it. None: not known, so it bounds nothing."""

    host: str
    """The host whose evidence describes the kernel."""
    shares: tuple[Share, ...]
    memory: Room | None
    """Free or reclaimable memory, and the floor that the run must leave, in bytes."""
    files: Room | None
    """fs.file-max and the open files."""
    tasks: Room | None
    """The least of kernel.pid_max, kernel.threads-max and RLIMIT_NPROC, and the existing tasks."""
    watches: Room | None


def bounds(kernels: Iterable[Kernel], tuples: int) -> list[Bound]:
    """Return every limit at every end that has it, the lowest maximum first.

    If several hosts of an end have a limit, the host that it binds first stands for all of them. A
    kernel or host without a part in the run bounds nothing.
    """
    found: dict[tuple[str, str], Bound] = {}

    def bound(name: str, end: str, host: str, room: Room | None, per: float | Fraction) -> None:
        if room is None or per <= 0:
            return
        most = max(0, math.floor(Fraction(room.limit - room.used) / Fraction(per)))
        before = found.get((name, end))
        if before is None or most < before.max_connections:
            found[name, end] = Bound.model_validate(
                {
                    "name": name,
                    "end": end,
                    "host": host,
                    "max_connections": most,
                    "limit": room.limit,
                    "used": room.used,
                    "per_connection": float(per),
                    "unit": CATALOGUE[name].unit,
                }
            )

    bound("tuples", "path", "", Room(tuples, 0), 1)
    for kernel in kernels:
        parts = [share for share in kernel.shares if share.part > 0]
        for one in parts:
            name = "nofile" if one.nofile <= one.nr_open else "fs.nr_open"
            # If the number of workers is free, the parent's pipe to each worker bounds it.
            workers = one.workers or max(1, one.descriptors - RESERVE)
            bound(name, one.end, one.host, Room(one.descriptors, one.reserve), one.part / workers)
            if one.workers is None and one.room:
                bound("pids", one.end, one.host, one.tasks, one.part / one.room)
            bound("nf_conntrack_max", one.end, one.host, one.tracked, one.part)
            bound("ip_local_port_range", one.end, one.host, one.ports, one.part)
            bound("memory.max", one.end, one.host, one.memory_max, float(one.part) * one.bytes_each)
        own = {share.end for share in parts}
        end = own.pop() if len(own) == 1 else "both"
        started = sum((s.part / s.room for s in parts if s.workers is None and s.room), Fraction(0))
        bound("pids", end, kernel.host, kernel.tasks, started)
        bound("fs.file-max", end, kernel.host, kernel.files, ends(kernel))
        watched = sum((s.part * s.watches for s in parts), Fraction(0))
        bound("fs.epoll.max_user_watches", end, kernel.host, kernel.watches, watched)
        bound("memory", end, kernel.host, kernel.memory, connection_bytes(kernel))
    return sorted(found.values(), key=lambda one: (one.max_connections, one.name, one.end))


def binding(found: Iterable[Bound]) -> dict[str, Bound]:
    """Return the limit that binds first at each end that has a limit: ``server``, ``client``,
    ``path``.

    A limit of a kernel with both ends binds both of them.
    """
    first: dict[str, Bound] = {}
    for one in sorted(found, key=lambda one: one.max_connections):
        for end in ("server", "client") if one.end == "both" else (one.end,):
            first.setdefault(end, one)
    return first


def connection_bytes(kernel: Kernel) -> float:
    """Return the memory that one more connection of the run takes from a kernel, in bytes."""
    return sum(float(share.part) * share.bytes_each for share in kernel.shares)


def slab_bytes(kernel: Kernel) -> float:
    """Return the slab that one more connection of the run takes from a kernel, in bytes."""
    return sum(float(share.part) * share.kernel_bytes for share in kernel.shares)


def ends(kernel: Kernel) -> Fraction:
    """Return the sockets that a kernel gains with one more connection of the run."""
    return sum((share.part for share in kernel.shares), Fraction(0))
