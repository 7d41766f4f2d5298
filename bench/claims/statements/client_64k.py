"""Whether one client address can open no more than 64K connections to one server port."""

from __future__ import annotations

from pydantic import Field

from bench.claims import portspace
from bench.claims.lab import Lab
from bench.claims.model import Claim, Found, Judgement
from bench.claims.portrange import DEFAULT, LAST, UNPRIVILEGED, span
from bench.claims.portspace import Filled, RangesParameters

FIRST_PORT = 1_024
"""The first port that a user may bind (:data:`UNPRIVILEGED`)."""

EVERY = "1 65535"
"""Every port. Port 0 cannot be used: bind(2) takes it as a request to choose a port."""

START = "net.ipv4.ip_unprivileged_port_start"
"""Ports below it need CAP_NET_BIND_SERVICE (ip-sysctl.rst); per network namespace."""


class RangesFound(Found):
    """The connections from one client address to one server address and port."""

    rows: list[Filled] = Field(description="one range of source ports each")


def measure_client_64k(lab: Lab, parameters: RangesParameters) -> RangesFound:
    """Use up ranges of source ports, chosen by the kernel and by bind(2)."""
    client = lab.client
    rows = []
    for family in portspace.families(lab, parameters.families):
        for ports in parameters.ranges:
            lab.note(f"IPv{family}, {ports}")
            rows.append(portspace.filled(lab, client, ports, family=family))
        for ports in parameters.explicit:
            lab.note(f"IPv{family}, {ports}, bound one by one")
            low = span(ports)[0]
            with lab.settings([client] if low < FIRST_PORT else [], sysctl={START: low}):
                rows.append(portspace.planned(lab, client, ports, family=family))
    return RangesFound(rows=rows)


def judge_client_64k(found: RangesFound) -> Judgement:
    """Judge it confirmed if each range held exactly as many connections as it has ports."""
    measured = "; ".join(_range(row) for row in found.rows)
    if not found.rows:
        return Judgement("inconclusive", measured, "no range of source ports was tried")
    if any(row.held > row.allowed for row in found.rows):
        return Judgement(
            "refuted", measured, "more connections were held than the range has source ports"
        )
    for row in found.rows:
        taken = row.refused.get("EADDRINUSE", 0)  # by sockets that existed before
        if not row.exact and not (taken and row.held + taken == row.allowed):
            return Judgement(
                "inconclusive",
                measured,
                f"{row.ports} allows {row.allowed:,}, {row.held:,} were held, and it was "
                f"{row.bound_by} that stopped them",
            )
    ranges = {row.ports: row.allowed for row in found.rows}
    each = ", ".join(
        f"{allowed:,}{'' if number else ' of them'} from {' to '.join(ports.split('-'))}"
        for number, (ports, allowed) in enumerate(ranges.items())
    )
    return Judgement(
        "confirmed",
        measured,
        f"to one server address and port only the client's port tells connections apart: {each}",
    )


def _range(row: Filled) -> str:
    how = "" if row.chosen_by == "kernel" else " by bind"
    return f"IPv{row.family} {row.ports}{how}: {row.held:,}"


CLAIM = Claim(
    id="client-64k",
    said="One client address can open at most 64K connections to one server port.",
    cure="Widen ip_local_port_range to 1024 65535, or bind the ports oneself, which is faster: "
    "past half of a range connect(2) searches long for each; for more add addresses or ports.",
    read="docs/scenarios.md",
    small=RangesParameters(ranges=["20000 24999"], explicit=["20000 24999"], families=[4, 6]),
    full=RangesParameters(
        ranges=["20000 24999", DEFAULT, UNPRIVILEGED],
        explicit=[UNPRIVILEGED, EVERY],
        families=[4, 6],
    ),
    measure=measure_client_64k,
    judge=judge_client_64k,
    connections=lambda parameters: LAST,
)
