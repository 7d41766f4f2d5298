"""What source ports allow: the claims about 64K and what each further address or port adds."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field, ValidationInfo, field_validator

from bench.claims import portspace
from bench.claims.lab import Lab, NotMeasurable
from bench.claims.model import Claim, Found, Judgement, Parameters
from bench.claims.portrange import DEFAULT, LAST, UNPRIVILEGED, span
from bench.claims.portspace import Filled
from bench.inventory import Host

FIRST_PORT = 1_024
"""Of what a user may bind (:data:`UNPRIVILEGED`)."""

EVERY = "1 65535"
"""Port 0 cannot be used: bind(2) takes it for *choose one*."""

SERVER_PORT = 6_000

START = "net.ipv4.ip_unprivileged_port_start"
"""Ports below it need CAP_NET_BIND_SERVICE (ip-sysctl.rst); of each network namespace."""


class RangesParameters(Parameters):
    """Which ranges of source ports are used up."""

    ranges: list[str] = Field(max_length=16)
    """As in ip_local_port_range: the kernel chooses from them."""
    explicit: list[str] = Field(max_length=16)
    """The same, bound one by one."""
    families: portspace.Families

    @field_validator("ranges", "explicit")
    @classmethod
    def _are_ranges(cls, value: list[str]) -> list[str]:
        for one in value:
            span(one)
        return value

    @field_validator("explicit")
    @classmethod
    def _is_one_at_least(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if not value and info.data.get("ranges") == []:
            raise ValueError("got no range here nor in ranges, expected one at least")
        return value


class RangesFound(Found):
    """What one client address opened to one server address and port."""

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
    """Confirmed where each range held as many as it has ports, and none more than there are."""
    measured = "; ".join(_range(row) for row in found.rows)
    if not found.rows:
        return Judgement("inconclusive", measured, "no range of source ports was tried")
    if any(row.held > row.allowed for row in found.rows):
        return Judgement(
            "refuted", measured, "more connections were held than the range has source ports"
        )
    for row in found.rows:
        taken = row.refused.get("EADDRINUSE", 0)  # by sockets that were there before
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


CLIENT_64K = Claim(
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


class AddedParameters(RangesParameters):
    """Which source ports are used up, and with how many addresses or ports of one kind."""

    most: int = Field(ge=2, le=16)


class AddedFound(Found):
    """What was held with one of them, with two, and so on."""

    what: str = Field(description="what is added: client addresses, server addresses or ports")
    rows: list[Filled] = Field(description="one number of them each")


def measure_added(
    lab: Lab, parameters: AddedParameters, what: str, there: dict[int, int]
) -> AddedFound:
    """Use up ranges of source ports with one address or port, with two, and so on.

    :param there: IP version to how many there are
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


def measure_client_ips(lab: Lab, parameters: AddedParameters) -> AddedFound:
    """With one client address, two, and so on."""
    cure = (
        "for more of them tune for more connections: ansible-playbook lab.yml -e connections=200000"
    )
    there = _several(lab, parameters, lab.client, cure)
    return measure_added(lab, parameters, "client addresses", there)


def measure_server_ports(lab: Lab, parameters: AddedParameters) -> AddedFound:
    """With one server port, two, and so on."""
    families = portspace.families(lab, parameters.families)
    return measure_added(lab, parameters, "server ports", dict.fromkeys(families, parameters.most))


def measure_server_ips(lab: Lab, parameters: AddedParameters) -> AddedFound:
    """With one server address, two, and so on."""
    cure = "what gives it two: ansible-playbook lab.yml -e lab_server_addresses=2"
    there = _several(lab, parameters, lab.server, cure)
    return measure_added(lab, parameters, "server addresses", there)


def _several(lab: Lab, parameters: AddedParameters, host: Host, cure: str) -> dict[int, int]:
    """IP version to how many addresses of it a host has.

    :raises NotMeasurable: where it has one of each at most.
    """
    there = {
        family: len(portspace.addresses(lab, host, family))
        for family in portspace.families(lab, parameters.families)
    }
    if max(there.values()) < 2:
        raise NotMeasurable(f"{host.name} has one address; {cure}")
    return there


def judge_added(found: AddedFound) -> Judgement:
    """Confirmed where each one more brought exactly as many connections as the first."""
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


def _claim(
    id: str,
    said: str,
    cure: str,
    measure: Callable[[Lab, AddedParameters], AddedFound],
    families: portspace.Families,
) -> Claim[AddedParameters, AddedFound]:
    """That each further one of something adds as many connections as the first."""
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


MORE_CLIENT_IPS = _claim(
    "more-client-ips",
    said="Each added client address adds another 64K connections.",
    cure="Give clients alias addresses (role alias_ips) and bind each connection to one of them.",
    measure=measure_client_ips,
    families=[4, 6],
)

MORE_SERVER_PORTS = _claim(
    "more-server-ports",
    said="Each added server port adds another 64K connections per client address.",
    cure="Listen on several ports where few clients, such as a proxy, bring all connections.",
    measure=measure_server_ports,
    families=[4],
)

MORE_SERVER_IPS = _claim(
    "more-server-ips",
    said="Each added server address adds another 64K connections per client address.",
    cure="Give the server further addresses and spread clients over them, for instance by DNS.",
    measure=measure_server_ips,
    families=[4],
)
