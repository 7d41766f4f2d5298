"""What the four values of a connection allow: the claim about 2^32 x 2^16."""

from __future__ import annotations

import ipaddress
import secrets

from pydantic import Field

from bench.claims import portspace
from bench.claims.lab import Lab
from bench.claims.model import Claim, Found, Judgement, Parameters
from bench.hosts.told import Told

SAID = 1 << 48
"""2^32 addresses x 2^16 ports."""

NO_CLIENTS = (
    "0.0.0.0/8",  # this host on this network
    "10.0.0.0/8",  # private use
    "100.64.0.0/10",  # shared address space
    "127.0.0.0/8",  # loopback
    "169.254.0.0/16",  # link local
    "172.16.0.0/12",  # private use
    "192.0.0.0/24",  # protocol assignments
    "192.0.2.0/24",  # documentation
    "192.168.0.0/16",  # private use
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast: never a source (RFC 1122 section 3.2.1.3)
    "240.0.0.0/4",  # reserved, with the limited broadcast address
)
"""IPv4 addresses that no client on the Internet has: those that are not global in RFC 6890 section
2.2.2, and multicast."""

PORTS = (1 << 16) - 1
"""Port 0 is reserved (RFC 6335 section 6)."""

FIRST_UNPRIVILEGED = 1_024

SERVER_PORTS = [6_000, 6_001]
CONTROL_PORT = 4_999

SAME, PLAIN = "same", "same, without SO_REUSEADDR"
BY_TUPLE = ("EADDRNOTAVAIL", "EADDRINUSE")
"""Errors for four values that are in use (net/ipv4/inet_hashtables.c ``__inet_hash_connect``,
net/ipv4/inet_connection_sock.c ``inet_csk_get_port``); any other errno comes from the path or the
server."""

LACKING = ("client address", "server address")
"""Values of which a host may have only one."""

ELEMENTS = ("client address", "client port", "server address", "server port")


class FourTupleParameters(Parameters):
    """The IP versions of the trial."""

    families: portspace.Families


class FourTupleFound(Found):
    """The arithmetic, and the answers to a second connection."""

    said: int = Field(description="four-tuples to one listening port as said: 2^48")
    addresses: int = Field(description="IPv4 addresses that a client on the Internet can have")
    tuples: int = Field(description="those x 65,535 ports")
    tuples_unprivileged: int = Field(description="those x 64,512 ports that a user may bind")
    cases: dict[str, dict[str, str | None]] = Field(
        description="by IP version: a second connection while the first is held, by what of it "
        "differs: admitted, or the call that refused it and its errno; none: the host has no second"
    )


def addresses() -> int:
    """Return the number of IPv4 addresses that a client on the Internet can have."""
    apart = ipaddress.collapse_addresses(map(ipaddress.IPv4Network, NO_CLIENTS))
    return (1 << 32) - sum(network.num_addresses for network in apart)


def measure_four_tuple(lab: Lab, parameters: FourTupleParameters) -> FourTupleFound:
    """Count what is possible, and try which of the four values has to differ."""
    there = addresses()
    return FourTupleFound(
        said=SAID,
        addresses=there,
        tuples=there * PORTS,
        tuples_unprivileged=there * (PORTS - FIRST_UNPRIVILEGED + 1),
        cases={
            f"IPv{family}": _cases(lab, family)
            for family in portspace.families(lab, parameters.families)
        },
    )


def _cases(lab: Lab, family: int) -> dict[str, str | None]:
    sources = portspace.addresses(lab, lab.client, family)[:2]
    targets = portspace.addresses(lab, lab.server, family)[:2]
    nonce = secrets.token_hex(16)
    control = [targets[0], CONTROL_PORT]
    with lab.trials() as trials:
        server = trials.begin(
            lab.server,
            "four_tuple",
            role="server",
            endpoints=[[address, port] for address in targets for port in SERVER_PORTS],
            control=control,
            nonce=nonce,
        )
        client = trials.begin(
            lab.client,
            "four_tuple",
            role="client",
            sources=sources,
            targets={"address": targets, "port": SERVER_PORTS},
            source=sources[0],
            control=control,
            nonce=nonce,
        )
        server.go()
    cases = client.first.within("cases")
    return {
        name: cases.maybe(name, Told.text) if name in LACKING else cases.text(name)
        for name in ("first", PLAIN, SAME, *ELEMENTS)
    }


def judge_four_tuple(found: FourTupleFound) -> Judgement:
    """Judge it: each changed value has to admit, and the same four values have to be refused.

    The rest is arithmetic. A connection that failed for another reason than the four values has no
    weight.
    """
    measured = (
        f"the same four: {_told(found, SAME)}; "
        + ", ".join(f"another {name}: {_told(found, name)}" for name in ELEMENTS)
        + f"; {found.tuples:,} four-tuples of the Internet, {found.tuples / found.said:.1%} of 2^48"
    )
    tried = [cases for cases in found.cases.values() if cases.get("first") == "admitted"]
    if not tried or len(tried) < len(found.cases):
        return Judgement("inconclusive", measured, "the first connection was not admitted")
    if any(cases[SAME] == "admitted" for cases in tried):
        return Judgement(
            "refuted", measured, "two connections with the same four values were held at once"
        )
    refused = [name for cases in tried for name in ELEMENTS if _by_tuple(cases[name])]
    if refused:
        return Judgement(
            "refuted", measured, f"another {refused[0]} alone did not admit a second connection"
        )
    if not all(_by_tuple(cases[SAME]) for cases in tried):
        return Judgement(
            "inconclusive", measured, "it was not for the same four values that a second one failed"
        )
    otherwise = [
        (name, cases[name])
        for cases in tried
        for name in ELEMENTS
        if cases[name] not in ("admitted", None)
    ]
    if otherwise:
        name, answer = otherwise[0]
        return Judgement(
            "inconclusive",
            measured,
            f"with another {name} the connection failed, and not for its four values: {answer}",
        )
    lacking = [name for name in ELEMENTS if any(cases[name] is None for cases in tried)]
    lacks = f" (not tried, for want of a second one: {', '.join(lacking)})" if lacking else ""
    if found.tuples >= found.said:
        return Judgement("confirmed", measured, f"each of the four values tells them apart{lacks}")
    return Judgement(
        "depends",
        measured,
        f"each of the four values tells connections apart{lacks}, but neither port 0 nor private, "
        f"multicast and reserved addresses make clients on the Internet: {found.addresses:,} "
        "addresses are left; memory ends far sooner",
    )


def _by_tuple(answer: str | None) -> bool:
    """Return whether a second connection was refused because its four values are in use."""
    return answer is not None and answer.rpartition(" ")[2] in BY_TUPLE


def _told(found: FourTupleFound, case: str) -> str:
    """Return the answers to the IP versions, only once if they agree."""
    answers = dict.fromkeys(cases.get(case) or "not tried" for cases in found.cases.values())
    return " / ".join(answers)


CLAIM = Claim(
    id="four-tuple",
    said="The four-tuple allows 2^32 x 2^16 connections to one listening port.",
    cure="Nothing to cure: long before tuples end memory does; see `python -m bench predict`.",
    read="docs/scenarios.md",
    small=FourTupleParameters(families=[4, 6]),
    full=FourTupleParameters(families=[4, 6]),
    measure=measure_four_tuple,
    judge=judge_four_tuple,
)
