"""What a host reports as free memory, beside what a socket took."""

from __future__ import annotations

from pydantic import Field

from bench.claims import slabs
from bench.claims.lab import Lab, NotMeasurable
from bench.claims.model import Claim, Found, Judgement, Parameters
from bench.scenario import MOST_CONNECTIONS

ENOUGH = 500_000
"""Number of sockets from which the two falls have to agree with the slab: their 1.1 KB each, some
550 MB, are more than the machine's other activity takes or frees in a minute."""

RECLAIMABLE = ("sock_inode_cache", "dentry")
"""Caches with SLAB_RECLAIM_ACCOUNT in which a socket has an object (net/socket.c init_inodecache,
fs/dcache.c dcache_init)."""

PAGE_CACHE = "Active(file)", "Inactive(file)"

SAID_PROMISED = 1_100
"""Bytes per socket that are said to be promised (bench.agent.memory PINNED_BYTES)."""


class MemAvailableParameters(Parameters):
    """How many connections are held."""

    connections: int = Field(ge=1_000, le=MOST_CONNECTIONS)


class MemAvailableFound(Found):
    """What each socket took of the free memory, and of the memory reported as available."""

    sockets: int = Field(description="sockets that the server's kernel gained: both ends if shared")
    reclaimable: float = Field(
        description="bytes per socket in sock_inode_cache and dentry, which count as reclaimable"
    )
    inodes: float = Field(description="inodes that sock_inode_cache gained per socket")
    disturbed: bool = Field(description="whether other sockets came or went meanwhile")
    available_fall: float = Field(description="bytes that MemAvailable fell by per socket")
    free_fall: float = Field(
        description="bytes that MemFree and the page cache together fell by per socket"
    )
    promised: float = Field(
        description="the difference: bytes per socket that MemAvailable promises and that are not "
        "there; other programs' memory is in it, the less the more sockets there are"
    )
    counted: float = Field(
        description="bytes per socket that all reclaimable slab (SReclaimable) grew by: the "
        "sockets' own, and what observers left"
    )
    mem_available_kib: int = Field(description="MemAvailable at the peak, KiB")
    mem_free_kib: int = Field(description="MemFree at the peak, KiB")
    page_cache_kib: int = Field(description="Active(file) and Inactive(file) at the peak, KiB")


def measure_memavailable(lab: Lab, parameters: MemAvailableParameters) -> MemAvailableFound:
    """Hold connections; compare the memory that the kernel reports before and at the peak."""
    done = lab.held(connections=parameters.connections, watch="none")
    phases = done.hosts[lab.server.name].phases
    before, peak = phases["before"], phases["peak"]
    sockets, parts = slabs.sockets(before, peak), slabs.per_socket(before, peak)
    if not sockets:
        raise NotMeasurable("the server's slab caches could not be read, or show no new socket")

    def kib(phase: str, *fields: str) -> int:
        return slabs.kib(lab.server.name, phases, phase, *fields)

    def fell(*fields: str) -> float:
        return (kib("before", *fields) - kib("peak", *fields)) * 1024 / sockets

    available, free = fell("MemAvailable"), fell("MemFree", *PAGE_CACHE)
    return MemAvailableFound(
        sockets=sockets,
        reclaimable=round(sum(parts.get(name, 0.0) for name in RECLAIMABLE), 1),
        inodes=round(slabs.gained("sock_inode_cache", before, peak) / sockets, 3),
        disturbed=slabs.of_servers(done, lab.shared_kernel).disturbed,
        available_fall=round(available, 1),
        free_fall=round(free, 1),
        promised=round(free - available, 1),
        counted=round(0.0 - fell("SReclaimable"), 1),
        mem_available_kib=kib("peak", "MemAvailable"),
        mem_free_kib=kib("peak", "MemFree"),
        page_cache_kib=kib("peak", *PAGE_CACHE),
    )


def judge_memavailable(found: MemAvailableFound) -> Judgement:
    """Judge it by the slab, which nothing else disturbs.

    With many sockets the two falls have to agree with it.
    """
    large = found.sockets >= ENOUGH
    measured = (
        f"{found.reclaimable:,.0f} B per socket in reclaimable slab, with {found.inodes:.2f} "
        f"inodes each; MemAvailable fell by {found.available_fall:,.0f} B per socket, MemFree and "
        f"page cache by {found.free_fall:,.0f} B, and SReclaimable rose by {found.counted:,.0f} B"
    )
    if found.disturbed:
        return Judgement(
            "inconclusive", measured, "sockets that are not the run's came or went meanwhile"
        )
    if large and abs(found.promised - found.counted) > 0.2 * found.reclaimable:
        return Judgement(
            "inconclusive", measured, "the falls differ by another amount than the slab explains"
        )
    by = "" if large else "; with so few sockets the slab is judged, the falls have noise in them"
    if abs(found.reclaimable - SAID_PROMISED) <= 0.2 * SAID_PROMISED and found.inodes >= 0.9:
        return Judgement(
            "confirmed",
            measured,
            "inode and dentry of a socket come from caches that count as reclaimable, and no "
            f"reclaim frees them while the socket is open{by}",
        )
    if found.reclaimable < 0.2 * SAID_PROMISED:
        return Judgement(
            "refuted", measured, f"sockets take next to nothing of reclaimable caches{by}"
        )
    return Judgement(
        "depends", measured, f"this kernel's inode and dentry of a socket are of another size{by}"
    )


CLAIM = Claim(
    id="memavailable",
    said="MemAvailable counts the sockets' own inode and dentry slabs as reclaimable; it promises "
    "about 1.1 KB per socket that isn't there.",
    cure="Watch MemFree and the page cache, or take 1.1 KB per open socket off MemAvailable.",
    read="docs/architecture.md",
    small=MemAvailableParameters(connections=20_000),
    full=MemAvailableParameters(connections=1_000_000),
    measure=measure_memavailable,
    judge=judge_memavailable,
    connections=lambda parameters: parameters.connections,
)
