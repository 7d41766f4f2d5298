"""A million connections on a host of 3.9 GB, or the memory that they would take."""

from __future__ import annotations

from pydantic import Field

from bench.claims import slabs
from bench.claims.article import CONNECTIONS, MEM_TOTAL_KIB, SLAB_EACH, SLAB_KIB
from bench.claims.lab import Lab, NotMeasurable
from bench.claims.model import Claim, Found, Judgement, Parameters
from bench.errors import LabError
from bench.results.classic import ARTICLE
from bench.scenario import MOST_CONNECTIONS
from bench.units import size

SAID_FREE_KIB = 100_000_000 // 1024
"""The 100 MB that are said to stay free."""

ALIKE = 0.1
"""Relative difference up to which two figures count as about the same."""


class MillionParameters(Parameters):
    """How many connections, and whether the rest of the million is calculated."""

    connections: int = Field(ge=1_000, le=MOST_CONNECTIONS)
    extrapolate: bool


class MillionFound(Found):
    """What the server held, or would need to hold as many as the statement says."""

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
    """Hold a million on a server of 3.9 GB, or fewer on any server and calculate the rest."""
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

    def kib(phase: str, field: str) -> int:
        return slabs.kib(lab.server.name, phases, phase, field)

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
        slab_kib=round(server.each * CONNECTIONS / 1024) if reckoned else kib("peak", "Slab"),
        mem_free_kib=None if reckoned else kib("peak", "MemFree"),
        mem_available_kib=None if reckoned else kib("peak", "MemAvailable"),
        used_before_kib=record.mem_total_kib - kib("before", "MemAvailable"),
    )


def _as_said(shared_kernel: bool, mem_total_kib: int) -> None:
    """Check that the server is such a host. :raises NotMeasurable: if it is not."""
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
    """Return whether a host has about the memory of the statement's host."""
    return abs(mem_total_kib - MEM_TOTAL_KIB) <= 0.05 * MEM_TOTAL_KIB


def judge_million(found: MillionFound) -> Judgement:
    """Judge whether a million is held, or would fit, with the stated slab and free memory.

    It would fit if the sum of three parts is no more than the host's memory: the slab, the memory
    that is said to be free, and the memory that such a host had in use before. The memory in use on
    a host of another size does not count.
    """
    own = f"{size(found.each)} per connection on Linux {found.kernel}"
    slab = f"{found.slab_kib * 1024 / 1e9:.2f} GB of slab"
    if found.extrapolated:
        measured = (
            f"extrapolated from {found.held:,} connections: {slab} for {CONNECTIONS:,}, {own}"
        )
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
        fits = found.held >= CONNECTIONS
        if not fits and found.bound_by != "memory":
            return Judgement(
                "inconclusive", measured, f"it was not memory that kept it from {CONNECTIONS:,}"
            )
    if not fits:
        return Judgement(
            "refuted",
            measured,
            f"so many do not fit 3.9 GB where a connection takes so much{beside}",
        )
    verb = "would fit" if found.extrapolated else "fit"
    if abs(found.slab_kib - SLAB_KIB) > ALIKE * SLAB_KIB:
        return Judgement(
            "depends",
            measured,
            f"a million {verb}, but what each takes is the kernel's: {size(SLAB_EACH)} on Linux "
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


CLAIM = Claim(
    id="million",
    said="A host with 3.9 GB RAM can hold 1,000,024 ESTAB connections with about 3.2 GB of slab, "
    "100 MB free.",
    cure="Plan 4 GiB of slab for a million idle connections, and memory for the program and its "
    "buffers besides.",
    read="docs/architecture.md",
    small=MillionParameters(connections=20_000, extrapolate=True),
    full=MillionParameters(connections=CONNECTIONS, extrapolate=False),
    measure=measure_million,
    judge=judge_million,
    # The full run goes to a floor of its own, far below that of the usual scenario.
    connections=lambda parameters: parameters.connections if parameters.extrapolate else 0,
)
