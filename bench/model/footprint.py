"""What one host of a fleet needs for its share of the connections, and how many it can hold.

Each host is a machine with its own kernel. Kernel objects have the sizes of the host's kernel
release (:mod:`bench.model.objects`). The other figures are listed below with their sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from pydantic import BaseModel, ConfigDict, Field

from bench.model import objects

FD_BYTES = 2 * (8 + 0.25)
"""Descriptor table per open file: a pointer and two bits (fs/file.c ``alloc_fdtable``), counted
twice because the table grows by doubling."""

HELD_BYTES = 8
"""An agent's own memory per connection: 2.1 B in a server and 6.4 B in a client with 1,000,000
connections in one worker each (PSS, run of ``million-3.9g`` in docs/architecture.md)."""

AGENT_BYTES = 16 << 20
"""Memory of an agent without its workers: PSS of 18.5 MiB with one worker."""

WORKER_BYTES = 2_560 << 10
"""Memory of one worker process: PSS, 2.25 MiB each when 26 workers held 500,000 connections."""

BUCKET_BYTES = 8
"""Size of one entry of the established-hash table: ``struct inet_ehash_bucket``, a list head
(include/net/inet_hashtables.h)."""

EHASH_DEFAULT = 1 << 19
"""Most entries of that table if the kernel command line has no ``thash_entries=``. With less memory
there is one entry for each 128 KiB (net/ipv4/tcp.c ``tcp_init``, mm/mm_init.c
``alloc_large_system_hash``)."""

PAGES_PART = Fraction(64, 4096)
"""Part of the memory that describes memory: a ``struct page`` of 64 B for each page of 4 KiB
(include/linux/mm_types.h)."""

RESERVE_PART = Fraction(1, 64)
"""Part of the memory that the kernel reserves: watermarks and lowmem reserves (mm/page_alloc.c
``calculate_totalreserve_pages``): 361 MiB of 24 GiB by ``/proc/zoneinfo``, 1.5 %."""

SYSTEM_BYTES = 256 << 20
"""Kernel image, boot-time tables, systemd, sshd: 233 MiB on Debian 12 with its cloud kernel 6.1 and
4,000 MiB of RAM. The figure is RAM less MemFree after boot, without ``struct page`` and the
agent."""

PID_MAX = 32_768
"""Default limit on the processes of a kernel (include/linux/threads.h ``PID_MAX_DEFAULT``)."""

THREAD_BYTES = 8 * 16_384
"""Memory per task that kernel.threads-max allows (kernel/fork.c ``set_max_threads``: memory divided
by eight times THREAD_SIZE, 16 KiB on x86-64)."""

TASKS_PART = Fraction(33, 100)
"""Part of the tasks that a login may have: ``TasksMax=33%`` in systemd's
user-.slice.d/10-defaults.conf."""

OTHER_TASKS = 64
"""Tasks of a login that are not workers: the agent, its threads, sudo and the collecting tools."""


class Ram(BaseModel):
    """Memory of one host, in bytes: the total, and the purpose of each part."""

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
        """Sum of all parts."""
        return sum(getattr(self, name) for name in type(self).model_fields if name != "given")


@dataclass(frozen=True)
class Machine:
    """One kind of host."""

    ram: int
    cores: int


@dataclass(frozen=True)
class Load:
    """The work of the hosts of one end, and their limits."""

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
        """Return the worker processes for ``share`` connections: at least one for each core."""
        return max(self.machine.cores, -(-share // self.room))

    def ram(self, share: int) -> Ram:
        """Return the memory that ``share`` connections need."""
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
        """Return each limit's own maximum of connections for one host, by the model's names."""
        processes = {"nofile": self.nofile - self.reserve, "pids": tasks(self.machine.ram)}
        return {
            "memory": most(lambda share: self.ram(share).needed <= self.machine.ram),
            **{
                name: self.room * number if number >= self.machine.cores else 0
                for name, number in processes.items()
            },
        }

    def least_ram(self) -> int:
        """Return the least memory with which a machine of that many cores holds one connection."""
        needs = self.ram(1)
        fixed = needs.needed - needs.spare - needs.system + SYSTEM_BYTES
        return math.ceil(fixed / (1 - self.spare - PAGES_PART - RESERVE_PART))


def socket_bytes(kernel: str, server: bool, watched: bool) -> float:
    """Return the slab bytes of one end of a connection, without the client's port buckets."""
    parts = objects.parts(server=server, watched=watched)
    return _bytes({name: count for name, count in parts.items() if name != _PORT}, kernel)


def port_bytes(kernel: str, ports: int) -> int:
    """Return the slab bytes of a client's ports: one bucket per port, for all addresses."""
    return math.ceil(_bytes({_PORT: ports}, kernel))


_PORT = "tcp_bind_bucket"


def _bytes(parts: Mapping[str, float], kernel: str) -> float:
    return objects.endpoint_bytes(parts, kernel, {}, {})


def ehash_entries(share: int) -> int:
    """Return the entries of an established-hash table for ``share`` connections: a power of two, at
    least one per connection."""
    return 1 << max(0, share - 1).bit_length()


def ehash_default(ram: int) -> int:
    """Return the entries that the kernel makes by default."""
    return min(ehash_entries(ram >> 17), EHASH_DEFAULT)


def tasks(ram: int) -> int:
    """Return the workers that a login of a machine may have with default limits."""
    return max(0, int(TASKS_PART * min(ram // THREAD_BYTES, PID_MAX)) - OTHER_TASKS)


def most(fits: Callable[[int], bool]) -> int:
    """Return the largest number that fits, 0 if none does.

    If a number does not fit, no larger number may fit.
    """
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
