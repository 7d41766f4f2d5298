"""What a connection takes of a host's memory, and what the host says is left of it."""

from __future__ import annotations

from pydantic import Field

from bench.claims import slabs
from bench.claims.lab import Lab
from bench.claims.model import Claim, Found, Judgement, NotMeasurable, Parameters
from bench.classic import ARTICLE
from bench.errors import LabError
from bench.units import size

SAID = ARTICLE.established
SAID_SLAB_KIB = ARTICLE.meminfo_kib["Slab"]
SAID_EACH = SAID_SLAB_KIB * 1024 / SAID
"""All slab of the classic experiment's host per connection, bytes."""

MEM_TOTAL_KIB = 3_922_676
"""MemTotal of a machine as in the classic experiment, 3.9 GB (docs/architecture.md)."""

SAID_FREE_KIB = 100_000_000 // 1024
"""The 100 MB that are said to be left free."""

ALIKE = 0.1
"""Part by which a figure may differ and still be about the same."""


class MillionParameters(Parameters):
    """How many connections, and whether the rest of the million is reckoned."""

    connections: int = Field(ge=1_000, le=100_000_000)
    extrapolate: bool


class MillionFound(Found):
    """What the server held, or would take to hold as many as said."""

    extrapolated: bool = Field(
        description="whether the figures for 1,000,024 are reckoned from fewer connections"
    )
    kernel: str = Field(description="release of the server's kernel")
    mem_total_kib: int = Field(description="MemTotal of the server, KiB")
    held: int = Field(description="ESTAB connections on the server, by ss")
    bound_by: str = Field(description="the limit that stopped the run, or none")
    each: float = Field(description="slab bytes per connection, of the server's end")
    by_cache: dict[str, float] = Field(description="the same by slab cache")
    split: str = Field(description="how the server's end was told from the client's")
    disturbed: bool = Field(description="whether other sockets came or went meanwhile")
    slab_kib: int = Field(
        description="Slab of the server at the peak, KiB; extrapolated: of 1,000,024 connections "
        "alone"
    )
    mem_free_kib: int | None = Field(
        None, description="MemFree of the server at the peak, KiB; not extrapolated"
    )
    mem_available_kib: int | None = Field(
        None, description="MemAvailable of the server at the peak, KiB; not extrapolated"
    )
    used_before_kib: int | None = Field(
        None, description="MemTotal less MemAvailable of the server before the run, KiB"
    )


def measure_million(lab: Lab, parameters: MillionParameters) -> MillionFound:
    """Hold a million on a server of 3.9 GB, or fewer anywhere and reckon."""
    record = lab.hosts[lab.server.name]
    if parameters.extrapolate:
        done = lab.held(connections=parameters.connections, watch="none")
    else:
        _as_said(lab.shared_kernel, record.mem_total_kib)
        done = lab.run("million-3.9g", connections=parameters.connections)
        if done.verdict != "pass" and done.bound_by != "memory":
            raise LabError(f"run {done.run_id}: {done.reason}")
    server = slabs.of_servers(done, lab.shared_kernel)
    phases = done.hosts[lab.server.name].phases
    before, peak = phases["before"].meminfo_kib, phases["peak"].meminfo_kib
    reckoned = parameters.extrapolate
    return MillionFound(
        extrapolated=reckoned,
        kernel=record.kernel,
        mem_total_kib=record.mem_total_kib,
        held=done.measured.established.ss,
        bound_by=done.bound_by,
        each=server.each,
        by_cache=server.by_cache,
        split=server.split,
        disturbed=server.disturbed,
        slab_kib=round(server.each * SAID / 1024) if reckoned else peak["Slab"],
        mem_free_kib=None if reckoned else peak["MemFree"],
        mem_available_kib=None if reckoned else peak["MemAvailable"],
        used_before_kib=record.mem_total_kib - before["MemAvailable"],
    )


def _as_said(shared_kernel: bool, mem_total_kib: int) -> None:
    """See that the server is such a host. :raises NotMeasurable: if it is not."""
    if shared_kernel:
        raise NotMeasurable(
            "the hosts share one kernel and its memory; virtual machines have their own "
            "(-i inventory/vm)"
        )
    if not _like_it(mem_total_kib):
        raise NotMeasurable(
            f"the server's MemTotal is {mem_total_kib:,} KiB, not within 5 % of "
            f"{MEM_TOTAL_KIB:,} (3.9 GB)"
        )


def _like_it(mem_total_kib: int) -> bool:
    """Whether a host has about the memory of the statement's."""
    return abs(mem_total_kib - MEM_TOTAL_KIB) <= 0.05 * MEM_TOTAL_KIB


def judge_million(found: MillionFound) -> Judgement:
    """A million is held, or would fit; with the slab and the free memory that are said or not.

    It would fit if the slab, what is said to be free and what such a host had in use before are no
    more than its memory; what a host of another size had in use says nothing of that.
    """
    own = f"{size(found.each)} per connection on Linux {found.kernel}"
    slab = f"{found.slab_kib * 1024 / 1e9:.2f} GB of slab"
    if found.extrapolated:
        measured = f"extrapolated from {found.held:,} connections: {slab} for {SAID:,}, {own}"
    else:
        measured = (
            f"{found.held:,} ESTAB, {slab}, {(found.mem_free_kib or 0) * 1024 / 1e6:,.0f} MB free, "
            f"{own}"
        )
    if found.disturbed:
        return Judgement(
            "inconclusive", measured, "sockets that are not the run's came or went meanwhile"
        )
    used = found.used_before_kib if _like_it(found.mem_total_kib) else None
    beside = ""
    if found.extrapolated:
        fits = found.slab_kib + SAID_FREE_KIB + (used or 0) <= MEM_TOTAL_KIB
        if used is None:
            beside = "; what such a host has in use besides is not reckoned"
    else:
        fits = found.held >= SAID
        if not fits and found.bound_by != "memory":
            return Judgement(
                "inconclusive", measured, f"it was not memory that kept it from {SAID:,}"
            )
    if not fits:
        return Judgement(
            "refuted",
            measured,
            f"so many do not fit 3.9 GB where a connection takes so much{beside}",
        )
    verb = "would fit" if found.extrapolated else "fit"
    if abs(found.slab_kib - SAID_SLAB_KIB) > ALIKE * SAID_SLAB_KIB:
        return Judgement(
            "depends",
            measured,
            f"a million {verb}, but what each takes is the kernel's: {size(SAID_EACH)} on Linux "
            f"{ARTICLE.kernel}, {size(found.each)} here{beside}",
        )
    free = found.mem_free_kib or 0
    if not found.extrapolated and not SAID_FREE_KIB / 2 <= free <= SAID_FREE_KIB * 2:
        return Judgement(
            "depends",
            measured,
            f"a million {verb} with the slab that is said, but what is left free is not about "
            "100 MB: that is a matter of what else the host does",
        )
    return Judgement(
        "confirmed",
        measured,
        f"a million {verb}: an idle connection is a socket, its inode, dentry and file, and no "
        f"buffer{beside}",
    )


MILLION = Claim(
    id="million",
    said="A host with 3.9 GB RAM can hold 1,000,024 ESTAB connections with about 3.2 GB of slab, "
    "100 MB free.",
    cure="Plan 4 GiB of slab for a million idle connections, and memory for the program and its "
    "buffers besides.",
    read="docs/architecture.md",
    small=MillionParameters(connections=20_000, extrapolate=True),
    full=MillionParameters(connections=SAID, extrapolate=False),
    measure=measure_million,
    judge=judge_million,
    # The full run goes to a floor of its own, far below that of the usual scenario.
    connections=lambda parameters: parameters.connections if parameters.extrapolate else 0,
)


class MemAvailableParameters(Parameters):
    """How many connections are held."""

    connections: int = Field(ge=1_000, le=100_000_000)


class MemAvailableFound(Found):
    """What each socket took of what is free, and of what is said to be available."""

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


ENOUGH = 500_000
"""Sockets from which the two falls have to agree with the slab: their 1.1 KB each, some 550 MB,
are more than what else a machine takes or gives back in a minute."""

RECLAIMABLE = ("sock_inode_cache", "dentry")
"""Caches with SLAB_RECLAIM_ACCOUNT that a socket has an object of (net/socket.c init_inodecache,
fs/dcache.c dcache_init)."""

SAID_PROMISED = 1_100
"""Bytes (bench.agent.memory PINNED_BYTES)."""


def measure_memavailable(lab: Lab, parameters: MemAvailableParameters) -> MemAvailableFound:
    """Hold connections and compare what the kernel says is left before and at the peak."""
    done = lab.held(connections=parameters.connections, watch="none")
    phases = done.hosts[lab.server.name].phases
    before, peak = phases["before"], phases["peak"]
    sockets, parts = slabs.sockets(before, peak), slabs.per_socket(before, peak)
    if not sockets:
        raise NotMeasurable("the server's slab caches could not be read, or show no new socket")

    def pages(meminfo: dict[str, int]) -> int:
        return meminfo["Active(file)"] + meminfo["Inactive(file)"]

    was, now = before.meminfo_kib, peak.meminfo_kib
    available = (was["MemAvailable"] - now["MemAvailable"]) * 1024 / sockets
    free = (was["MemFree"] + pages(was) - now["MemFree"] - pages(now)) * 1024 / sockets
    return MemAvailableFound(
        sockets=sockets,
        reclaimable=round(sum(parts.get(name, 0.0) for name in RECLAIMABLE), 1),
        inodes=round(slabs.gained("sock_inode_cache", before, peak) / sockets, 3),
        disturbed=slabs.of_servers(done, lab.shared_kernel).disturbed,
        available_fall=round(available, 1),
        free_fall=round(free, 1),
        promised=round(free - available, 1),
        counted=round((now["SReclaimable"] - was["SReclaimable"]) * 1024 / sockets, 1),
        mem_available_kib=now["MemAvailable"],
        mem_free_kib=now["MemFree"],
        page_cache_kib=pages(now),
    )


def judge_memavailable(found: MemAvailableFound) -> Judgement:
    """By the slab, which nothing else disturbs; with many sockets the two falls have to agree."""
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


MEMAVAILABLE = Claim(
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


class ModernCostParameters(Parameters):
    """How many connections are held."""

    connections: int = Field(ge=1_000, le=100_000_000)


class ModernCostFound(Found):
    """What one end costs on the kernels of this inventory's servers."""

    connections: int = Field(description="ESTAB connections held, by ss")
    each: dict[str, float] = Field(
        description="kernel release to slab bytes per connection, of the server's end, without "
        "epoll"
    )
    by_cache: dict[str, float] = Field(description="bytes by slab cache, of all servers")
    said: float = Field(
        description="all slab of the classic experiment's host per connection, bytes (Linux 3.10)"
    )
    split: str = Field(description="how the server's end was told from the client's")
    disturbed: bool = Field(description="whether other sockets came or went meanwhile")


MODERN = (3.7 * 1024, 3.9 * 1024)
"""Bytes per connection that are said of today's kernels."""


def measure_modern_cost(lab: Lab, parameters: ModernCostParameters) -> ModernCostFound:
    """Hold connections that nothing watches, as a bare accept loop does."""
    done = lab.held(connections=parameters.connections, watch="none", every_server=True)
    server = slabs.of_servers(done, lab.shared_kernel)
    return ModernCostFound(
        connections=done.measured.established.ss,
        each=server.by_kernel,
        by_cache=server.by_cache,
        said=round(SAID_EACH, 1),
        split=server.split,
        disturbed=server.disturbed,
    )


def judge_modern_cost(found: ModernCostFound) -> Judgement:
    """Confirmed where each kernel is about within what is said."""
    figures = ", ".join(f"{size(each)} on Linux {name}" for name, each in found.each.items())
    largest = ", ".join(f"{name} {size(each)}" for name, each in list(found.by_cache.items())[:4])
    measured = f"{figures} ({largest}); {size(found.said)} in the article"
    if found.disturbed or not found.each:
        return Judgement(
            "inconclusive", measured, "sockets that are not the run's came or went meanwhile"
        )
    low, high = MODERN
    if all(0.97 * low <= each <= 1.03 * high for each in found.each.values()):
        blobs = sum(each for name, each in found.by_cache.items() if name.startswith("lsm_"))
        return Judgement(
            "confirmed",
            measured,
            "the article's slab is not known by cache; here the socket itself takes most, and "
            f"security modules keep {blobs:.0f} B more of each",
        )
    if all(each <= found.said for each in found.each.values()):
        return Judgement("refuted", measured, "a connection costs no more here than it did")
    return Judgement(
        "depends", measured, "what a connection costs is a matter of the kernel's release and build"
    )


MODERN_COST = Claim(
    id="modern-cost",
    said="A connection costs more on today's kernels than in the article (3.2 -> 3.7 to 3.9 KiB).",
    cure="Measure on the kernel that you will run: its slab per connection decides how many fit.",
    read="docs/architecture.md",
    small=ModernCostParameters(connections=20_000),
    full=ModernCostParameters(connections=200_000),
    measure=measure_modern_cost,
    judge=judge_modern_cost,
    connections=lambda parameters: parameters.connections,
)
