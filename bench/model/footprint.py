"""What one host of a fleet needs for its share of the connections, and how many it can hold.

Each host is a machine with a kernel of its own. Sizes of kernel objects are those of the release
that it runs (:mod:`bench.model.objects`); the other figures are named below with their sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from pydantic import BaseModel, ConfigDict, Field

from bench.model import objects

FD_BYTES = 2 * (8 + 0.25)
"""Descriptor table per open file: a pointer and two bits (fs/file.c ``alloc_fdtable``), twice
because the table grows by doubling."""

HELD_BYTES = 8
"""An agent's own memory per connection: 2.1 B in a server and 6.4 B in a client at 1,000,000 in
one worker each (PSS, run of ``million-3.9g`` in docs/architecture.md)."""

AGENT_BYTES = 16 << 20
"""An agent without its workers: PSS of 18.5 MiB with one."""

WORKER_BYTES = 2_560 << 10
"""One worker process: PSS, 2.25 MiB each where 26 of them held 500,000 connections."""

BUCKET_BYTES = 8
"""One entry of the established-hash table: ``struct inet_ehash_bucket``, a list's head
(include/net/inet_hashtables.h)."""

EHASH_DEFAULT = 1 << 19
"""Most entries of that table where the kernel command line has no ``thash_entries=``; below, one
for each 128 KiB of memory (net/ipv4/tcp.c ``tcp_init``, mm/mm_init.c
``alloc_large_system_hash``)."""

PAGES_PART = Fraction(64, 4096)
"""Memory that describes memory: a ``struct page`` of 64 B for each page of 4 KiB
(include/linux/mm_types.h)."""

RESERVE_PART = Fraction(1, 64)
"""Memory that the kernel keeps for itself, watermarks and lowmem reserves (mm/page_alloc.c
``calculate_totalreserve_pages``): 361 MiB of 24 GiB by ``/proc/zoneinfo``, 1.5 %."""

SYSTEM_BYTES = 256 << 20
"""Kernel image, boot-time tables, systemd, sshd: 233 MiB on Debian 12 with its cloud kernel 6.1 and
4,000 MiB, which is RAM less MemFree after boot, without ``struct page`` and the agent."""

PID_MAX = 32_768
"""Processes of a kernel where nobody raised the limit (include/linux/threads.h
``PID_MAX_DEFAULT``)."""

THREAD_BYTES = 8 * 16_384
"""Memory for each task that kernel.threads-max allows (kernel/fork.c ``set_max_threads``:
memory over eight times THREAD_SIZE, 16 KiB on x86-64)."""

TASKS_PART = Fraction(33, 100)
"""A login's part of the tasks: ``TasksMax=33%`` in systemd's user-.slice.d/10-defaults.conf."""

OTHER_TASKS = 64
"""Tasks of a login that are no workers: the agent, its threads, sudo and what it collects with."""


class Ram(BaseModel):
    """Memory of one host, in bytes: what it has, and what each part of it is for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    given: int = Field(description="what the host has")
    sockets: int = Field(description="slab of its connections' ends and of its listeners")
    descriptors: int = Field(description="descriptor tables of its workers")
    agent: int = Field(description="the agent and its workers")
    ehash: int = Field(description="established-hash table")
    system: int = Field(description="kernel, its reserves, and the operating system")
    floor: int = Field(description="really free memory that a run must leave")
    spare: int = Field(description="left unplanned on purpose")

    @property
    def needed(self) -> int:
        """All parts together."""
        return sum(getattr(self, name) for name in type(self).model_fields if name != "given")


@dataclass(frozen=True)
class Machine:
    """One kind of host."""

    ram: int
    cores: int


@dataclass(frozen=True)
class Duty:
    """What the hosts of one end do, and the bounds they do it in."""

    machine: Machine
    socket: float
    """Slab bytes of one end of a connection."""
    common: int
    """Slab bytes that do not grow with the connections."""
    nofile: int
    reserve: int
    """Descriptors of a worker that are not connections."""
    listeners: int
    """Descriptors of a worker that are listening sockets."""
    floor: int
    spare: Fraction

    @property
    def room(self) -> int:
        """Connections that one worker can hold."""
        return self.nofile - self.reserve - self.listeners

    def workers(self, share: int) -> int:
        """Worker processes for ``share`` connections: at least one for each core."""
        return max(self.machine.cores, -(-share // self.room))

    def ram(self, share: int) -> Ram:
        """Memory that ``share`` connections need."""
        given = self.machine.ram
        agent = AGENT_BYTES + self.workers(share) * WORKER_BYTES + share * HELD_BYTES
        return Ram(
            given=given,
            sockets=math.ceil(share * self.socket) + self.common,
            descriptors=math.ceil(share * FD_BYTES),
            agent=agent,
            ehash=ehash_entries(share) * BUCKET_BYTES,
            system=SYSTEM_BYTES + math.ceil(given * (PAGES_PART + RESERVE_PART)),
            floor=self.floor,
            spare=math.ceil(given * self.spare),
        )

    def limits(self) -> dict[str, int]:
        """Each limit's own maximum of connections for one host, by the model's names."""
        processes = {"nofile": self.nofile - self.reserve, "pids": tasks(self.machine.ram)}
        return {
            "memory": most(lambda share: self.ram(share).needed <= self.machine.ram),
            **{
                name: self.room * number if number >= self.machine.cores else 0
                for name, number in processes.items()
            },
        }

    def least_ram(self) -> int:
        """The least memory with which a machine of these cores holds one connection."""
        needs = self.ram(1)
        fixed = needs.needed - needs.spare - needs.system + SYSTEM_BYTES
        return math.ceil(fixed / (1 - self.spare - PAGES_PART - RESERVE_PART))


def socket_bytes(kernel: str, server: bool, watched: bool) -> float:
    """Slab bytes of one end of a connection, without the client's port buckets."""
    parts = objects.parts(server=server, watched=watched)
    return _bytes({name: count for name, count in parts.items() if name != _PORT}, kernel)


def port_bytes(kernel: str, ports: int) -> int:
    """Slab bytes of a client's ports: one bucket serves a port on all addresses and targets."""
    return math.ceil(_bytes({_PORT: ports}, kernel))


_PORT = "tcp_bind_bucket"


def _bytes(parts: Mapping[str, float], kernel: str) -> float:
    return objects.endpoint_bytes(parts, kernel, {}, {})


def ehash_entries(share: int) -> int:
    """Entries of an established-hash table for ``share`` connections: a power of two, one each."""
    return 1 << max(0, share - 1).bit_length()


def ehash_default(ram: int) -> int:
    """Entries that the kernel makes by itself."""
    return min(ehash_entries(ram >> 17), EHASH_DEFAULT)


def tasks(ram: int) -> int:
    """Workers that a login of a machine may have where nobody raised a limit."""
    return max(0, int(TASKS_PART * min(ram // THREAD_BYTES, PID_MAX)) - OTHER_TASKS)


def most(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, 0 if none does; what is larger than one that does not, does
    not fit either."""
    if not fits(1):
        return 0
    high = 2
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
