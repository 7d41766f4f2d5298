"""What a NAT in the path allows."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from bench.claims.ends import Look
from bench.claims.lab import Lab, NotMeasurable
from bench.claims.model import Claim, Found, Judgement
from bench.claims.translated import PORT, NatParameters, Part, opened, with_full_table

UNANSWERED = "ETIMEDOUT"
"""Error of a client whose SYN the NAT dropped because it had no port left (connect(2))."""

CUT_SHORT = ("memory", "ramp_timeout_seconds")
"""Reasons that end a run before all its connections have been tried
(``bench.diagnosis.diagnose``)."""

NEARLY = 0.95
"""Share of the ports that must be found; only then the missing rest is attributed to the search."""


class NatFound(Found):
    """The point where each part stopped."""

    ports: int = Field(description="ports of the NAT for one address and one destination")
    retries: int = Field(description="further tries of each connection that was refused")
    one: Part = Field(description="through one NAT address to one destination")
    two_destinations: Part = Field(description="through one NAT address to two destinations")
    two_addresses: Part | None = Field(
        description="through two NAT addresses to one destination; none: the router has one"
    )
    entry_bytes: float | None = Field(
        description="slab of one conntrack entry, bytes; none: its cache is merged with another"
    )
    full_table: int | None = Field(
        description="entries that conntrack was left with, all protocols; none: not lowered here"
    )
    full_held: int | None = Field(description="connections held when that table was full")
    full_said: int | None = Field(description="kernel messages on the router that it was")
    full_why_not: str = Field(description="why the full table could not be measured; else empty")


def measure(lab: Lab, parameters: NatParameters) -> NatFound:
    """Open more connections through the router than its NAT has ports, in several ways.

    :raises NotMeasurable: if the server has no address behind the router.
    """
    router = lab.require("routers")
    addresses = [one for one in router.data_addresses if ":" not in one]
    with lab.trials() as trials:
        look = Look(trials, router)
        one = opened(lab, router, parameters, addresses[:1], [PORT])
        entry = look.caches().get("nf_conntrack")
    two = opened(lab, router, parameters, addresses[:1], [PORT + 1, PORT + 2])
    both = None
    if len(addresses) > 1:
        both = opened(lab, router, parameters, addresses[:2], [PORT + 3])
    full: tuple[int, int] | None = None
    why_not = ""
    try:
        full = with_full_table(lab, router, parameters, addresses[:1])
    except NotMeasurable as error:
        why_not = str(error)
    return NatFound(
        ports=len(parameters.ports),
        retries=parameters.retries,
        one=one,
        two_destinations=two,
        two_addresses=both,
        entry_bytes=None if entry is None else round(entry.bytes_each, 1),
        full_table=None if full is None else parameters.table,
        full_held=None if full is None else full[0],
        full_said=None if full is None else full[1],
        full_why_not=why_not,
    )


def judge(found: NatFound) -> Judgement:
    """Judge it confirmed if each destination and each NAT address brings its own ports, no more."""
    measured = (
        f"{found.one.held:,} of {found.one.tried:,} connections through one NAT address with "
        f"{found.ports:,} ports to one destination; {found.two_destinations.held:,} to two"
    )
    if found.two_addresses is not None:
        measured += f"; {found.two_addresses.held:,} through two NAT addresses"
    if found.full_held is not None:
        measured += f"; {found.full_held:,} with {found.full_table:,} conntrack entries"
    parts = {
        "one NAT address to one destination": found.one,
        "one NAT address to two destinations": found.two_destinations,
    }
    if found.two_addresses is not None:
        parts["two NAT addresses to one destination"] = found.two_addresses
    if any(one.held > one.ports or one.tried <= one.ports for one in parts.values()):
        return Judgement("inconclusive", measured, "the NAT's ports did not bound the connections")
    if all(one.held == one.ports for one in parts.values()):
        return Judgement(
            "confirmed",
            measured,
            "the router needs a port of its own for each connection to the same address and port; "
            "another destination or another NAT address brings them all again",
        )
    others = [
        f"{name}: {reason}" for name, one in parts.items() for reason in _others(one, found.retries)
    ]
    if others:
        return Judgement("inconclusive", measured, "; ".join(others))
    return Judgement(
        "depends",
        measured,
        "the ports bound it, and the search for a free one gave up before the last was found "
        "(net/netfilter/nf_nat_core.c nf_nat_l4proto_unique_tuple tries 128 ports at a time)",
    )


def _others(part: Part, retries: int) -> Iterator[str]:
    """Yield other reasons than the search for a port that can have kept a part below its ports."""
    if part.held == part.ports:
        return
    if part.bound_by in CUT_SHORT:
        yield f"the run was cut short ({part.bound_by})"
    other = [f"{name} {count:,}" for name, count in part.errors.items() if name != UNANSWERED]
    if other:
        yield f"clients saw {', '.join(other)} as well"
    # A connection that is given up was refused at every try; one that got in later, at some.
    refused, unheld = part.errors.get(UNANSWERED, 0), part.tried - part.held
    if refused < unheld * (retries + 1):
        yield (
            f"{refused:,} tries were not answered, expected {retries + 1} for each of the "
            f"{unheld:,} connections that were not held"
        )
    if part.held < NEARLY * part.ports:
        yield f"{part.held:,} connections are less than {NEARLY:.0%} of {part.ports:,} ports"


CLAIM = Claim(
    id="nat",
    said="A NAT box supports about 55,000-64,000 connections to each unique destination.",
    cure="Give the NAT more addresses, the server more addresses or ports, and conntrack more "
    "entries (nf_conntrack_max).",
    read="docs/your-own-machines.md",
    small=NatParameters(first_port=40_000, last_port=40_999, beyond=60, retries=3, table=500),
    full=NatParameters(first_port=1_024, last_port=65_535, beyond=1_000, retries=10, table=20_000),
    measure=measure,
    judge=judge,
    connections=lambda parameters: 2 * len(parameters.ports),
    groups=("routers",),
)
