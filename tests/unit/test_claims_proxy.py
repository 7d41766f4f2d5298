from __future__ import annotations

from typing import Any

import pytest

from bench.claims.proxy import ProxyFound, judge, listening


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


def test_listeners_are_found_in_proc_net_tcp() -> None:
    text = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
        "   0: 01D212C6:1387 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000\n"
        "   1: 01D212C6:1388 0100A8C0:D431 01 00000000:00000000 00:00000000 00000000  1000\n"
        "   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n"
    )
    assert listening(text) == {4999, 22}
