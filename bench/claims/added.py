"""Claims that each added address or port adds 64K connections."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field

from bench.claims import portspace
from bench.claims.lab import Lab, NotMeasurable
from bench.claims.model import Claim, Found, Judgement
from bench.claims.portrange import DEFAULT, UNPRIVILEGED, span
from bench.claims.portspace import Filled, RangesParameters
from bench.inventory import Host

SERVER_PORT = 6_000


class AddedParameters(RangesParameters):
    """Which source ports are used up, and with how many addresses or ports of one kind."""

    most: int = Field(ge=2, le=16)


class AddedFound(Found):
    """The connections held with one of them, with two, and so on."""

    what: str = Field(description="what is added: client addresses, server addresses or ports")
    rows: list[Filled] = Field(description="one number of them each")


def measure_added(
    lab: Lab, parameters: AddedParameters, what: str, there: dict[int, int]
) -> AddedFound:
    """Use up ranges of source ports with one address or port, with two, and so on.

    :param there: IP version to the number of them that exist
    """
    rows = []
    for family, most in there.items():
        for count in range(1, min(parameters.most, most) + 1):
            fields: dict[str, object] = {"family": family}
            if what == "server ports":
                fields["server_ports"] = [SERVER_PORT + number for number in range(count)]
            else:
                fields[what.replace(" ", "_")] = count
            for ports in parameters.ranges:
                lab.note(f"IPv{family}, {count} {what}")
                rows.append(portspace.filled(lab, lab.client, ports, **fields))
            for ports in parameters.explicit:
                lab.note(f"IPv{family}, {count} {what}, bound one by one")
                rows.append(portspace.planned(lab, lab.client, ports, **fields))
    return AddedFound(what=what, rows=rows)


def several(lab: Lab, parameters: AddedParameters, host: Host, cure: str) -> dict[int, int]:
    """Return IP version to the number of a host's addresses of it.

    :raises NotMeasurable: if the host has at most one of each.
    """
    there = {
        family: len(portspace.addresses(lab, host, family))
        for family in portspace.families(lab, parameters.families)
    }
    if max(there.values()) < 2:
        raise NotMeasurable(f"{host.name} has one address; {cure}")
    return there


def judge_added(found: AddedFound) -> Judgement:
    """Judge it confirmed if each added one brought exactly as many connections as the first."""
    groups: dict[tuple[int, str, str], list[Filled]] = {}
    for row in found.rows:
        groups.setdefault((row.family, row.ports, row.chosen_by), []).append(row)
    measured = "; ".join(
        f"IPv{family} {ports}{'' if chosen == 'kernel' else ' by bind'}: "
        + ", ".join(f"{row.held:,}" for row in rows)
        for (family, ports, chosen), rows in groups.items()
    )
    measured = f"with 1, 2, ... {found.what}: {measured}"
    added = [
        (row.held - rows[0].held, number * rows[0].held)
        for rows in groups.values()
        for number, row in enumerate(rows)
        if number
    ]
    if added and not any(more for more, _ in added):
        return Judgement("refuted", measured, "not one connection more was held")
    if not added or any(more != expected for more, expected in added):
        return Judgement("inconclusive", measured, "the counts are no multiples of the first")
    if not all(row.exact for row in found.rows):
        other = next(row for row in found.rows if not row.exact)
        return Judgement(
            "inconclusive",
            measured,
            f"it was not for want of ports that they stopped: {other.bound_by}",
        )
    return Judgement(
        "confirmed",
        measured,
        "a port is taken for one four-tuple alone: with another address or port at either end the "
        "same source ports can all be used again",
    )


def _connections(parameters: AddedParameters) -> int:
    spans = map(span, [*parameters.ranges, *parameters.explicit])
    return parameters.most * max(map(len, spans), default=0)


def claim(
    id: str,
    said: str,
    cure: str,
    measure: Callable[[Lab, AddedParameters], AddedFound],
    families: portspace.Families,
) -> Claim[AddedParameters, AddedFound]:
    """Return the claim that each added one of something adds as many connections as the first."""
    return Claim(
        id=id,
        said=said,
        cure=cure,
        read="docs/scenarios.md",
        small=AddedParameters(ranges=["20000 24999"], explicit=[], families=families, most=2),
        full=AddedParameters(ranges=[DEFAULT], explicit=[UNPRIVILEGED], families=families, most=3),
        measure=measure,
        judge=judge_added,
        connections=_connections,
    )
