"""The cost of a connection on today's kernels, beside the classic experiment's."""

from __future__ import annotations

from pydantic import Field

from bench.claims import slabs
from bench.claims.article import SLAB_EACH
from bench.claims.lab import Lab
from bench.claims.model import Claim, Found, Judgement, Parameters
from bench.scenario import MOST_CONNECTIONS
from bench.units import size

MODERN = (3.7 * 1024, 3.9 * 1024)
"""Bytes per connection that are stated for today's kernels."""

ABOUT = 0.03
"""Relative distance by which a kernel may lie outside that range: a step of its last digit, 0.1 of
3.7 KiB."""


class ModernCostParameters(Parameters):
    """How many connections are held."""

    connections: int = Field(ge=1_000, le=MOST_CONNECTIONS)


class ModernCostFound(Found):
    """The cost of one end on the kernels of this inventory's servers."""

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


def measure_modern_cost(lab: Lab, parameters: ModernCostParameters) -> ModernCostFound:
    """Hold connections that nothing watches, as a bare accept loop does."""
    done = lab.held(connections=parameters.connections, watch="none", every_server=True)
    server = slabs.of_servers(done, lab.shared_kernel)
    return ModernCostFound(
        connections=done.measured.established.ss,
        each=server.by_kernel,
        by_cache=server.by_cache,
        said=round(SLAB_EACH, 1),
        split=server.split,
        disturbed=server.disturbed,
    )


def judge_modern_cost(found: ModernCostFound) -> Judgement:
    """Judge it confirmed if each kernel is about within the stated range."""
    figures = ", ".join(f"{size(each)} on Linux {name}" for name, each in found.each.items())
    largest = ", ".join(f"{name} {size(each)}" for name, each in list(found.by_cache.items())[:4])
    measured = f"{figures} ({largest}); {size(found.said)} in the article"
    if found.disturbed or not found.each:
        return Judgement(
            "inconclusive", measured, "sockets that are not the run's came or went meanwhile"
        )
    low, high = MODERN
    if all((1 - ABOUT) * low <= each <= (1 + ABOUT) * high for each in found.each.values()):
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


CLAIM = Claim(
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
