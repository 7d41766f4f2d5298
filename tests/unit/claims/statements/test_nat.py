from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.claims.lab import NotMeasurable
from bench.claims.statements.nat import CLAIM, NatFound, judge
from bench.claims.translated import Part, rules

PORTS, RETRIES = 1_000, 3


def part(held: int, times: int = 1, **fields: Any) -> Part:
    tried = times * (PORTS + 60)
    usual: dict[str, Any] = {
        "ports": times * PORTS,
        "tried": tried,
        "held": held,
        "errors": {"ETIMEDOUT": (tried - held) * (RETRIES + 1) + 7},
        "bound_by": "errors",
    }
    return Part(**{**usual, **fields})


def found(**fields: Any) -> NatFound:
    usual: dict[str, Any] = {
        "ports": PORTS,
        "retries": RETRIES,
        "one": part(1_000),
        "two_destinations": part(2_000, 2),
        "two_addresses": part(2_000, 2),
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
        ({"one": part(998)}, "depends"),
        ({"one": part(950)}, "depends"),
        ({"two_destinations": part(1_990, 2)}, "depends"),
        ({"two_addresses": part(1_900, 2)}, "depends"),
        ({"one": part(1_060)}, "inconclusive"),
        ({"one": part(900, tried=900)}, "inconclusive"),
        ({"two_destinations": part(2_001, 2)}, "inconclusive"),
        ({"two_addresses": part(2_000, 2, tried=2_000)}, "inconclusive"),
        ({"one": part(0), "two_destinations": part(0, 2)}, "inconclusive"),
    ],
)
def test_the_ports_decide(fields: dict[str, Any], verdict: str) -> None:
    assert judge(found(**fields)).verdict == verdict


@pytest.mark.parametrize("which", ["one", "two_destinations", "two_addresses"])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"bound_by": "memory"}, "the run was cut short (memory)"),
        ({"bound_by": "ramp_timeout_seconds"}, "the run was cut short (ramp_timeout_seconds)"),
        ({"errors": {"ETIMEDOUT": 999, "EHOSTUNREACH": 2}}, "clients saw EHOSTUNREACH 2 as well"),
        ({"errors": {"ETIMEDOUT": 40}}, "40 tries were not answered, expected 4 for each of the"),
        ({"errors": {}}, "0 tries were not answered, expected 4 for each of the"),
        ({"short": True}, "% of "),
    ],
)
def test_another_reason_is_not_put_down_to_the_search(
    which: str, fields: dict[str, Any], reason: str
) -> None:
    times = 1 if which == "one" else 2
    kept = {name: value for name, value in fields.items() if name != "short"}
    stopped = part(times * (949 if "short" in fields else 990), times, **kept)
    one = judge(found(**{which: stopped}))
    assert one.verdict == "inconclusive"
    assert reason in one.reason
    assert one.reason.startswith(("one NAT address to ", "two NAT addresses to "))


def test_what_was_measured_is_told() -> None:
    one = judge(found(full_table=500, full_held=498, full_said=3))
    assert one.measured == (
        "1,000 of 1,060 connections through one NAT address with 1,000 ports to one destination; "
        "2,000 to two; 2,000 through two NAT addresses; 498 with 500 conntrack entries"
    )


def server(*routed: str) -> Any:
    return SimpleNamespace(name="server1", routed_addresses=routed)


def test_the_nat_is_for_the_addresses_behind_the_router() -> None:
    behind = server("10.9.0.1", "fd63:6f6e:6e6c:1::1", "10.9.0.2")
    [body] = rules(CLAIM.parameters("small"), ["10.8.0.1", "10.8.0.2"], behind).values()
    assert body == (
        "chain post { type nat hook postrouting priority srcnat - 10; policy accept; "
        "ip protocol tcp tcp dport >= 6000 ip daddr { 10.9.0.1, 10.9.0.2 } "
        "snat to numgen inc mod 2 map { 0 : 10.8.0.1, 1 : 10.8.0.2 } : 40000-40999; }"
    )


def test_a_server_without_such_an_address_is_named() -> None:
    with pytest.raises(NotMeasurable, match="server1 has no IPv4 address in lab_routed_addresses"):
        rules(CLAIM.parameters("small"), ["10.8.0.1"], server("fd63:6f6e:6e6c:1::1"))
