"""Runs through a router's NAT, with a given number of ports and of conntrack entries."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from bench.claims.ends import Look
from bench.claims.lab import Lab, NotMeasurable
from bench.claims.portrange import PortRange
from bench.inventory import Host
from bench.results.format import Run

MAX = "net.netfilter.nf_conntrack_max"
"""The most entries of the conntrack table (nf_conntrack-sysctl.rst)."""

PORT = 6_000
"""First server port. Each part has its own, so that no part meets connections of another that the
router still remembers (nf_conntrack_tcp_timeout_close, 10 s)."""

TABLE_FULL = "table full"
"""Part of nf_conntrack's message when it drops a packet because it has no entry left
(net/netfilter/nf_conntrack_core.c __nf_conntrack_alloc)."""


class NatParameters(PortRange):
    """The NAT's ports, and how many connections are tried beyond them."""

    beyond: int = Field(ge=1, le=100_000)
    """Connections that are tried beyond what the ports allow, for each destination and address."""
    retries: int = Field(ge=0, le=100)
    """Retries of each connection: the NAT searches only some of its ports, others at each try."""
    table: int = Field(ge=100, le=10_000_000)
    """Entries that conntrack is left with in the last part."""


class Part(BaseModel):
    """One run through the NAT."""

    model_config = ConfigDict(extra="forbid")

    ports: int = Field(description="of the NAT, those of all addresses and destinations together")
    tried: int = Field(description="connections that were tried")
    held: int = Field(description="connections that were held")
    errors: dict[str, int] = Field(
        description="what the tries were answered, retries included: errno to count"
    )
    bound_by: str = Field(description="the limit that stopped the run, or none")


def opened(
    lab: Lab,
    router: Host,
    parameters: NatParameters,
    addresses: list[str],
    server_ports: list[int],
) -> Part:
    """Open more connections than the NAT has ports, on these addresses for these destinations.

    :raises NotMeasurable: if the server has no IPv4 address behind the router.
    """
    several = len(addresses) * len(server_ports)
    ports = len(parameters.ports) * several
    with lab.settings([router], tables=rules(parameters, addresses, lab.server)):
        done = _run(lab, parameters, server_ports, ports + parameters.beyond * several)
    return Part(
        ports=ports,
        tried=done.requested.connections,
        held=done.measured.established.ss,
        errors=done.measured.errors,
        bound_by=done.bound_by,
    )


def _run(lab: Lab, parameters: NatParameters, server_ports: list[int], connections: int) -> Run:
    return lab.run(
        path="routed",
        connections=connections,
        server_addresses=1,
        server_ports=server_ports,
        # A NAT without a free port drops the SYN: the client gets no answer. Each try searches
        # anew.
        connect_timeout_ms=1_000,
        retries=parameters.retries,
        backoff_ms=10,
        max_in_flight=512,
    )


def rules(parameters: NatParameters, addresses: list[str], server: Host) -> dict[str, str]:
    """Return a separate NAT, before the router's: the first NAT that handles a connection wins.

    Several addresses take turns. From a range, the kernel would choose an address for each pair of
    client and server by a hash (net/netfilter/nf_nat_core.c ``find_best_ips_proto``), full or not.

    :raises NotMeasurable: if the server has no IPv4 address behind the router.
    """
    behind = [one for one in server.routed_addresses if ":" not in one]
    if not behind:
        raise NotMeasurable(
            f"{server.name} has no IPv4 address in lab_routed_addresses, expected one behind the "
            "router"
        )
    turns = ", ".join(f"{at} : {address}" for at, address in enumerate(addresses))
    to = f"numgen inc mod {len(addresses)} map {{ {turns} }}"
    ports = f"{parameters.first_port}-{parameters.last_port}"
    return {
        "ip connlab_claim": (
            "chain post { type nat hook postrouting priority srcnat - 10; policy accept; "
            f"ip protocol tcp tcp dport >= {PORT} ip daddr {{ {', '.join(behind)} }} "
            f"snat to {to} : {ports}; }}"
        )
    }


def with_full_table(
    lab: Lab, router: Host, parameters: NatParameters, addresses: list[str]
) -> tuple[int, int]:
    """Return the connections held with a full table, and the kernel's number of messages on it.

    :raises NotMeasurable: if the table belongs to the whole machine.
    """
    with (
        lab.settings(
            [router],
            sysctl={MAX: parameters.table},
            tables=rules(parameters, addresses, lab.server),
        ),
        lab.trials() as trials,
    ):
        look = Look(trials, router)
        before = look.text("kernel_log").count(TABLE_FULL)
        done = _run(lab, parameters, [PORT + 4], parameters.table + parameters.beyond)
        return done.measured.established.ss, look.text("kernel_log").count(TABLE_FULL) - before
