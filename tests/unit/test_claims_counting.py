from __future__ import annotations

from typing import Any

import pytest

from bench.claims.counting import CountFound, judge


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({}, "confirmed"),
        ({"seconds": 5.1}, "depends"),
        ({"counted": 19_999}, "inconclusive"),
        ({"wrong_ports": 1}, "inconclusive"),
    ],
)
def test_the_number_and_the_time_decide(fields: dict[str, Any], verdict: str) -> None:
    usual: dict[str, Any] = {
        "held": 20_000,
        "counted": 20_000,
        "ports": 4,
        "wrong_ports": 0,
        "seconds": 0.04,
        "seconds_in_all": 0.8,
    }
    one = judge(CountFound(**{**usual, **fields}))
    assert one.verdict == verdict
    assert "of 20,000 connections on 4 ports counted in" in one.measured
