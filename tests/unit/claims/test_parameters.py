"""Bounds of every claim's parameters: what makes no sense is refused before a host is touched."""

from __future__ import annotations

from typing import Any

import pytest

from bench.claims import register
from bench.claims.model import Claim
from bench.errors import InputError

CLAIMS = pytest.mark.parametrize("claim", register.CLAIMS.values(), ids=register.CLAIMS)

EITHER = {"ranges", "explicit"}
"""Lists of which one may be empty, and whose items are read by a validator."""


def unbounded(schema: dict[str, Any], name: str) -> list[str]:
    """Names of what has no least or no greatest value."""
    if schema.get("type") == "array":
        least = "minItems" in schema or name in EITHER
        own = [] if least and "maxItems" in schema else [name]
        return own + unbounded(schema["items"], f"{name}[]")
    if schema.get("type") not in ("integer", "number") or "enum" in schema:
        return []
    least = "minimum" in schema or "exclusiveMinimum" in schema
    return [] if least and "maximum" in schema else [name]


@CLAIMS
def test_every_parameter_is_bounded(claim: Claim[Any, Any]) -> None:
    properties = type(claim.small).model_json_schema()["properties"]
    assert [one for name, of in properties.items() for one in unbounded(of, name)] == []


@CLAIMS
def test_profiles_are_within_their_own_bounds(claim: Claim[Any, Any]) -> None:
    assert claim.parameters("small") == claim.small
    assert claim.parameters("full") == claim.full


@pytest.mark.parametrize(
    ("name", "overrides", "field"),
    [
        ("port-myth", {"connections": 0}, "connections"),
        ("four-tuple", {"families": []}, "families"),
        ("four-tuple", {"families": [5]}, "families.0"),
        ("four-tuple", {"families": [4, 4]}, "families"),
        ("client-64k", {"ranges": [], "explicit": []}, "explicit"),
        ("client-64k", {"ranges": ["9 1"]}, "ranges"),
        ("client-64k", {"ranges": ["20000 20999"] * 17}, "ranges"),
        ("more-client-ips", {"ranges": [], "explicit": []}, "explicit"),
        ("more-server-ips", {"most": 17}, "most"),
        ("fd-levels", {"soft": 8}, "soft"),
        ("fd-levels", {"login": 3_000, "inherited": 3_000}, "inherited"),
        ("million", {"connections": 0}, "connections"),
        ("socket-buffers", {"connections": 0}, "connections"),
        ("socket-buffers", {"each": 65_536}, "each"),
        ("socket-buffers", {"flood": 3 << 30}, "flood"),
        ("time-wait", {"ports": 0}, "ports"),
        ("time-wait", {"ports": 32_769}, "ports"),
        ("time-wait", {"ports": 40_000}, "ports"),
        ("burst", {"bursts": []}, "bursts"),
        ("burst", {"bursts": [0]}, "bursts.0"),
        ("burst", {"backlogs": [70_000]}, "backlogs.0"),
        ("burst", {"cure": 128}, "cure"),
        ("burst", {"nap_ms": 0.0}, "nap_ms"),
        ("multiplexers", {"watched": [10, 100]}, "watched"),
        ("multiplexers", {"watched": [100, 100, 1_000]}, "watched"),
        ("keystroke", {"sizes": []}, "sizes"),
        ("keystroke", {"sequential": 0}, "sequential"),
        ("nat", {"first_port": 2_000, "last_port": 1_999}, "last_port"),
        ("nat", {"beyond": 0}, "beyond"),
        ("reverse-proxy", {"first_port": 30_000, "last_port": 20_000}, "last_port"),
        ("reverse-proxy", {"connections": 0}, "connections"),
        ("userland-tcp", {"echoes": 0}, "echoes"),
        ("userland-tcp", {"tried": 100, "connections": 99}, "connections"),
        ("userland-tcp", {"connections": 50_000}, "connections"),
        ("processes", {"processes": []}, "processes"),
        ("processes", {"processes": [1]}, "processes"),
        ("processes", {"processes": [2, 1]}, "processes"),
        ("count-by-port", {"ports": 0}, "ports"),
        ("epoll-watches", {"watches": 4_000, "connections": 4_000}, "connections"),
        ("hash-table", {"entries": 5_000}, "entries"),
        ("memavailable", {"connections": 0}, "connections"),
        ("modern-cost", {"connections": 200_000_000}, "connections"),
    ],
)
def test_what_makes_no_sense_is_one_line(name: str, overrides: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as refused:
        register.claim(name).parameters("small", overrides)
    text = str(refused.value)
    assert text.startswith(f"claim {name}: {field}: ")
    assert len(text.splitlines()) == 1 and "For further information" not in text


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("keystroke", {"sizes": [1_000, 2_000]}),
        ("client-64k", {"ranges": []}),
        ("client-64k", {"explicit": []}),
        ("hash-table", {"entries": 4_096}),
        ("time-wait", {"ports": 32_768}),
        ("burst", {"nap_ms": 1}),
    ],
)
def test_what_makes_sense_is_taken(name: str, overrides: dict[str, Any]) -> None:
    taken = register.claim(name).parameters("small", overrides).model_dump()
    assert {field: taken[field] for field in overrides} == overrides
