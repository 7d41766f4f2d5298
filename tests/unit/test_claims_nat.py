from __future__ import annotations

from typing import Any

import pytest

from bench.claims.nat import NatFound, judge


def found(**fields: Any) -> NatFound:
    usual: dict[str, Any] = {
        "ports": 1_000,
        "one": 1_000,
        "tried": 1_060,
        "two_destinations": 2_000,
        "two_addresses": 2_000,
        "client_saw": {"ETIMEDOUT": 240},
        "entry_bytes": 256.0,
        "full_table": None,
        "full_held": None,
        "full_said": None,
        "full_why_not": "shared",
    }
    return NatFound(**{**usual, **fields})


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({}, "confirmed"),
        ({"two_addresses": None}, "confirmed"),
        ({"one": 998}, "depends"),
        ({"two_destinations": 1_990}, "depends"),
        ({"two_addresses": 1_000}, "depends"),
        ({"one": 1_060}, "inconclusive"),
        ({"tried": 900, "one": 900}, "inconclusive"),
    ],
)
def test_the_ports_decide(fields: dict[str, Any], verdict: str) -> None:
    assert judge(found(**fields)).verdict == verdict


def test_what_was_measured_is_told() -> None:
    one = judge(found(full_table=500, full_held=498, full_said=3))
    assert one.measured == (
        "1,000 of 1,060 connections through one NAT address with 1,000 ports to one destination; "
        "2,000 to two; 2,000 through two NAT addresses; 498 with 500 conntrack entries"
    )
