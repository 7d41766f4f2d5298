"""A run beside the classic experiment: a million connections on a server of 3.9 GB, kernel 3.10."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.results.format import Phase, Run
from bench.units import size

COMPARED_FROM = 900_000
"""Connections from which a run is set beside the classic experiment."""


@dataclass(frozen=True)
class Side:
    """One side of the comparison with the classic experiment. Sizes in KiB, as meminfo gives."""

    kernel: str
    established: int
    meminfo_kib: Mapping[str, int]

    @property
    def slab_each(self) -> float | None:
        """All slab of the machine per connection, in bytes."""
        slab = self.meminfo_kib.get("Slab")
        return None if slab is None else slab * 1024 / self.established


ARTICLE = Side("3.10", 1_000_024, {"Slab": 3_241_244, "MemFree": 96_652, "MemAvailable": 6_448})
"""The classic experiment: a CentOS host with 3.9 GB of memory, as the article about it prints
``ss`` and ``/proc/meminfo`` at the peak. Its slab is not known by cache."""


@dataclass(frozen=True)
class Classic:
    """A run set beside the classic experiment."""

    run: Side
    mem_total_kib: int
    grown: float | None
    """Slab growth per connection, in bytes."""
    why: list[str]


def compare(run: Run) -> Classic | None:
    """The run beside :data:`ARTICLE`, if it is of that kind.

    That is: one server in a virtual machine of its own, and :data:`COMPARED_FROM` connections
    by all three counts.
    """
    servers = [host for host in run.hosts.values() if "servers" in host.groups]
    peak = servers[0].phases.get("peak") if len(servers) == 1 else None
    counts = run.measured.established
    held = min(counts.clients, counts.servers, counts.ss)
    if run.substrate != "vm" or peak is None or held < COMPARED_FROM:
        return None
    side = Side(servers[0].kernel, counts.ss, peak.meminfo_kib)
    kernel = run.measured.kernel_bytes_per_connection
    return Classic(
        run=side,
        mem_total_kib=servers[0].mem_total_kib,
        grown=kernel.server,
        why=[*_why_more(kernel.server, kernel.by_cache), *_why_available(peak, kernel.by_cache)],
    )


def _why_more(grown: float | None, by_cache: Mapping[str, float]) -> list[str]:
    """Why a connection takes more slab than in the article, as far as the figures tell."""
    then = ARTICLE.slab_each
    tcp = sum(by_cache.get(name, 0.0) for name in ("TCP", "TCPv6"))
    if grown is None or then is None or not tcp or grown <= then:
        return []
    blobs = sum(each for name, each in by_cache.items() if name.startswith("lsm_"))
    rest = blobs + sum(by_cache.get(name, 0.0) for name in ("sock_inode_cache", "dentry", "filp"))
    parts = [
        f"{name} {size(each)}"
        for name, each in by_cache.items()
        if each >= 0.01 * grown and not name.startswith("lsm_")
    ]
    if blobs > 0:
        parts.append(f"security modules' blobs (lsm_*) {size(blobs)}")
    return [
        f"A connection takes {size(grown)} of this kernel: {', '.join(parts)}.",
        "The article's slab is not known by cache. Had inode, dentry, file and blobs been as "
        f"large then as they are now, its {size(then)} would leave the socket itself at most "
        f"{size(then - rest)}; here it takes {size(tcp)} (cache TCP) and so is the likeliest to "
        "have grown.",
    ]


def _why_available(peak: Phase, by_cache: Mapping[str, float]) -> list[str]:
    """Why MemAvailable cannot be compared, where sockets' inodes are counted into it."""
    pinned = sum(by_cache.get(name, 0.0) for name in ("sock_inode_cache", "dentry")) * peak.held
    available = peak.meminfo_kib.get("MemAvailable", 0) * 1024
    if not 0 < pinned <= available:
        return []
    return [
        f"Of this kernel's MemAvailable, {size(pinned)} are the live sockets' own inodes and "
        "dentries, which no reclaim gives back: MemFree is the figure to compare."
    ]
