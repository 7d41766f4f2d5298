from __future__ import annotations

from typing import Any

import pytest

from bench.agent.trials.look import listening
from bench.claims.proxy import ProxyFound, judge


def found(**fields: Any) -> ProxyFound:
    usual: dict[str, Any] = {
        "ports": 500,
        "sources": 2,
        "one_proxy": 1_000,
        "tried": 1_040,
        "held": 4_000,
        "asked": 4_000,
        "per_proxy": {"proxy1": 2_000, "proxy2": 2_000},
        "haproxy_bytes": 1_234.0,
        "kernel_bytes": 15_000.0,
        "plain_sees_client": False,
        "header_names_client": True,
        "transparent_sees_client": True,
    }
    return ProxyFound(**{**usual, **fields})


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({}, "depends"),
        ({"header_names_client": False}, "confirmed"),
        ({"one_proxy": 1_040}, "inconclusive"),
        ({"one_proxy": 998}, "inconclusive"),
        ({"held": 3_999}, "inconclusive"),
    ],
)
def test_ports_and_headers_decide(fields: dict[str, Any], verdict: str) -> None:
    assert judge(found(**fields)).verdict == verdict


def test_listeners_are_found_in_what_ss_prints() -> None:
    text = (
        "LISTEN 0      4096      198.18.211.1:4999      0.0.0.0:*          \n"
        "LISTEN 0      4096      198.18.211.2:4999      0.0.0.0:*          \n"
        "LISTEN 0      128            0.0.0.0:22        0.0.0.0:*          \n"
        "LISTEN 0      128               [::]:22           [::]:*          \n"
    )
    assert listening(text) == [22, 4999]
