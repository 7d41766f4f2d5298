"""Comparison of a run with the classic experiment: a million connections on a server with 3.9 GB
of memory and kernel 3.10."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.results.format import Phase, Run
from bench.units import size

COMPARED_FROM = 900_000
"""Fewest connections of a run that is compared with the classic experiment."""


@dataclass(frozen=True)
class Side:
    """One side of the comparison with the classic experiment. Sizes in KiB, as in meminfo."""

    kernel: str
    established: int
    meminfo_kib: Mapping[str, int]

    @property
    def slab_each(self) -> float | None:
        """Slab of the whole machine per connection, in bytes."""
        slab = self.meminfo_kib.get("Slab")
        return None if slab is None else slab * 1024 / self.established


ARTICLE = Side("3.10", 1_000_024, {"Slab": 3_241_244, "MemFree": 96_652, "MemAvailable": 6_448})
"""The classic experiment: a CentOS host with 3.9 GB of memory. The figures are the output of ``ss``
and ``/proc/meminfo`` at the peak, as printed in the article. Its slab is not known by cache."""


@dataclass(frozen=True)
class Classic:
    """A run compared with the classic experiment."""

    run: Side
    mem_total_kib: int
    grown: float | None
    """Slab growth per connection, in bytes."""
    why: list[str]


def compare(run: Run) -> Classic | None:
    """Return the comparison of a run with :data:`ARTICLE`; None if the run is of another kind.

    A comparable run has one server, which is a virtual machine, and :data:`COMPARED_FROM`
    connections by all three counts.
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
    """Return why a connection takes more slab than in the article, as far as the figures show."""
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
        "The article's slab is not known by cache. If its inode, dentry, file and blobs were as "
        f"large as here, its {size(then)} would leave at most {size(then - rest)} for the socket "
        f"itself. Here the socket takes {size(tcp)} (cache TCP), so it is the object that has most "
        "likely grown.",
    ]


def _why_available(peak: Phase, by_cache: Mapping[str, float]) -> list[str]:
    """Return why MemAvailable cannot be compared if it includes the sockets' inodes."""
    pinned = sum(by_cache.get(name, 0.0) for name in ("sock_inode_cache", "dentry")) * peak.held
    available = peak.meminfo_kib.get("MemAvailable", 0) * 1024
    if not 0 < pinned <= available:
        return []
    return [
        f"This kernel's MemAvailable includes {size(pinned)} of the live sockets' own inodes and "
        "dentries, which cannot be reclaimed: MemFree is the figure to compare."
    ]
