"""What is judged from counts of addresses, ports and four-tuples."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import pytest

from bench.claims import added, portrange
from bench.claims.portspace import Filled
from bench.claims.statements import client_64k, four_tuple, port_myth


def filled(**fields: Any) -> Filled:
    usual: dict[str, Any] = {
        "family": 4,
        "ports": "20000-24999",
        "chosen_by": "kernel",
        "addresses": 1,
        "targets": 1,
        "allowed": 5_000,
        "held": 5_000,
        "refused": {"EADDRNOTAVAIL": 160},
        "bound_by": "ip_local_port_range",
        "first_half_rate": 20_000,
        "second_half_rate": 2_000,
    }
    return Filled(**{**usual, **fields})


BOUND = {"chosen_by": "plan", "bound_by": "tuples", "refused": {}}


@pytest.mark.parametrize(
    ("held", "answered", "verdict"),
    [(65_536, 200, "refuted"), (65_535, 200, "inconclusive"), (66_000, 199, "inconclusive")],
)
def test_one_more_than_there_are_ports_refutes(held: int, answered: int, verdict: str) -> None:
    found = port_myth.PortMythFound(
        held=held, client_addresses=2, echoes_asked=200, echoes_answered=answered
    )
    one = port_myth.judge_port_myth(found)
    assert one.verdict == verdict
    assert one.measured.endswith("client addresses: 2")


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([filled(), filled(**BOUND)], "confirmed"),
        ([filled(held=4_999)], "inconclusive"),
        ([filled(bound_by="nofile")], "inconclusive"),
        ([filled(held=5_001)], "refuted"),
        (  # sshd(8) has port 22
            [filled(**{**BOUND, "held": 4_999, "refused": {"EADDRINUSE": 1}, "bound_by": "ports"})],
            "confirmed",
        ),
        ([filled(**{**BOUND, "held": 4_998, "bound_by": "ports"})], "inconclusive"),
    ],
)
def test_a_range_holds_as_many_as_it_has_ports(rows: list[Filled], verdict: str) -> None:
    one = client_64k.judge_client_64k(client_64k.RangesFound(rows=rows))
    assert one.verdict == verdict
    assert one.measured.startswith(
        f"IPv4 20000-24999{' by bind' * (rows[0].refused != {'EADDRNOTAVAIL': 160})}: "
    )


def test_no_range_judges_nothing() -> None:
    one = client_64k.judge_client_64k(client_64k.RangesFound(rows=[]))
    assert (one.verdict, one.measured) == ("inconclusive", "")
    assert "no range" in one.reason


def test_the_reason_tells_of_the_ranges_that_were_measured_alone() -> None:
    few = client_64k.judge_client_64k(client_64k.RangesFound(rows=[filled(), filled(family=6)]))
    assert few.reason.endswith("5,000 of them from 20000 to 24999")
    every = filled(ports="1-65535", allowed=65_535, held=65_535, **BOUND)
    more = client_64k.judge_client_64k(client_64k.RangesFound(rows=[filled(), every]))
    assert more.reason.endswith("5,000 of them from 20000 to 24999, 65,535 from 1 to 65535")


def twice(**fields: Any) -> Filled:
    return filled(**{"allowed": 10_000, "held": 10_000, "addresses": 2, **fields})


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([filled(), twice()], "confirmed"),
        ([filled(), twice(), filled(family=6), twice(family=6)], "confirmed"),
        ([filled(), twice(held=5_000)], "refuted"),
        ([filled(), twice(held=9_999)], "inconclusive"),
        ([filled()], "inconclusive"),
        ([filled(), twice(bound_by="nofile")], "inconclusive"),
    ],
)
def test_each_one_more_has_to_bring_as_many(rows: list[Filled], verdict: str) -> None:
    one = added.judge_added(added.AddedFound(what="client addresses", rows=rows))
    assert one.verdict == verdict
    assert one.measured.startswith("with 1, 2, ... client addresses: IPv4 20000-24999: 5,000")


@pytest.mark.parametrize("text", ["", "5", "9 1", "0 5", "1 65536", "a b", "1 2 3"])
def test_a_range_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        portrange.span(text)


def test_the_kernel_s_ranges_have_their_well_known_sizes() -> None:
    sizes = {
        text: len(portrange.span(text))
        for text in (portrange.DEFAULT, portrange.UNPRIVILEGED, client_64k.EVERY)
    }
    assert list(sizes.values()) == [28_232, 64_512, 65_535]


ADMITTED = dict.fromkeys(four_tuple.ELEMENTS, "admitted")
CASES = {
    "first": "admitted",
    "same": "connect: EADDRNOTAVAIL",
    "same, without SO_REUSEADDR": "bind: EADDRINUSE",
    **ADMITTED,
}


def tuples(cases: dict[str, str | None], **fields: int) -> four_tuple.FourTupleFound:
    usual = {"said": 1 << 48, "addresses": 10, "tuples": 655_350, "tuples_unprivileged": 645_120}
    return four_tuple.FourTupleFound(cases={"IPv4": cases}, **{**usual, **fields})


@pytest.mark.parametrize(
    ("found", "verdict", "why"),
    [
        (tuples(CASES), "depends", "each of the four"),
        (tuples(CASES, tuples=1 << 48), "confirmed", "each of the four"),
        (tuples({**CASES, "server address": None}), "depends", r"not tried.*: server address\)"),
        (tuples({**CASES, "same": "admitted"}), "refuted", "the same four"),
        (tuples({**CASES, "client port": "connect: EADDRNOTAVAIL"}), "refuted", "client port"),
        (tuples({**CASES, "client port": "bind: EADDRINUSE"}), "refuted", "client port"),
        (tuples({**CASES, "server port": "connect: ETIMEDOUT"}), "inconclusive", "server port"),
        (tuples({**CASES, "server address": "connect: EHOSTUNREACH"}), "inconclusive", "EHOSTUNR"),
        (tuples({**CASES, "server port": "connect: ECONNREFUSED"}), "inconclusive", "ECONNREF"),
        (tuples({**CASES, "client address": "mistaken for another"}), "inconclusive", "mistaken"),
        (tuples({**CASES, "same": "connect: ETIMEDOUT"}), "inconclusive", "the same four"),
        (tuples({**CASES, "first": "connect: ECONNREFUSED"}), "inconclusive", "the first"),
    ],
)
def test_each_element_has_to_admit(
    found: four_tuple.FourTupleFound, verdict: str, why: str
) -> None:
    one = four_tuple.judge_four_tuple(found)
    assert one.verdict == verdict
    assert re.search(why, one.reason)


def test_addresses_of_clients_are_global() -> None:
    assert four_tuple.addresses() == 3_702_258_688
    for text in four_tuple.NO_CLIENTS:
        network = ipaddress.IPv4Network(text)
        assert network.is_multicast or not network.is_global or text == "192.0.0.0/24"
