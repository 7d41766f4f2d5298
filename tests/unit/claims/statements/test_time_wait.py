"""The verdict on TIME_WAIT, from invented figures."""

from __future__ import annotations

from typing import Any

import pytest

from bench.agent.trials import lasting
from bench.claims.churning import Churn
from bench.claims.statements import time_wait
from bench.claims.statements.time_wait import TimeWaitFound


def churn(
    asked: int, done: int | None = None, error: str | None = None, left: tuple[int, int] = (500, 0)
) -> Churn:
    """``left``: TIME_WAITs on client and server."""
    done = asked if done is None else done
    return Churn(
        asked=asked,
        done=done,
        error=error,
        seconds=0.1,
        client_time_wait=left[0],
        server_time_wait=left[1],
    )


USED_UP = churn(501, 500, "EADDRNOTAVAIL")
FOUND: dict[str, Any] = {
    "fin_timeout": 60,
    "time_wait": 60.3,
    "armed": 60.0,
    "short_armed": 60.0,
    "fin_wait_2": 60.4,
    "short_fin_timeout": 5,
    "short_time_wait": 60.2,
    "short_fin_wait_2": 5.1,
    "ports": 500,
    "client_first": USED_UP,
    "server_first": churn(1000, left=(0, 250)),
    "reset": churn(1000, left=(0, 0)),
    "reuse_first": churn(500),
    "reuse_again": churn(500),
    "bound_after": 0.01,
    "reuse_after": 1.0,
    "loopback_only_after": None,
    "loopback_after": 1.0,
    "max_tw_buckets": 65_536,
    "object_bytes": 256.0,
    "socket_bytes": 2521.0,
    "objects_gained": 500,
}
SAID = {"time_wait": 120.2, "short_time_wait": 60.0}


def judged(**changed: object):
    return time_wait.judge_time_wait(TimeWaitFound.model_validate({**FOUND, **changed}))


@pytest.mark.parametrize(
    ("changed", "verdict", "part"),
    [
        ({}, "depends", "only this is so: it uses up ports; the kernel's TCP_"),
        (SAID, "confirmed", "all three"),
        ({**SAID, "time_wait": 124.1}, "confirmed", "all three"),
        ({"time_wait": 64.1}, "depends", "only this is so: it uses up ports;"),
        ({"time_wait": 118.0}, "depends", "tcp_fin_timeout tunes it"),
        ({"client_first": churn(501)}, "refuted", "ports did not run out"),
        ({"short_time_wait": 5.1}, "depends", "tcp_fin_timeout tunes it, it uses up ports"),
        ({"time_wait": 120.5, "short_time_wait": 123.4}, "depends", "it lasts two minutes"),
        ({"time_wait": None}, "inconclusive", "had not ended"),
        ({"short_time_wait": None}, "inconclusive", "had not ended"),
        ({"client_first": churn(501, 480, "EADDRNOTAVAIL")}, "inconclusive", "otherwise"),
        ({"client_first": churn(501, 500, "ETIMEDOUT")}, "inconclusive", "otherwise"),
        ({"client_first": churn(501, 300)}, "inconclusive", "took too long"),
        ({"client_first": churn(501, 500, "EADDRNOTAVAIL", (500, 1))}, "inconclusive", "were not"),
        ({"server_first": churn(1000, left=(1, 250))}, "inconclusive", "were not with the side"),
        ({"reset": churn(1000, left=(0, 1))}, "inconclusive", "were not with the side"),
        ({"reset": churn(1000, left=(9, 0))}, "inconclusive", "were not with the side"),
        ({"server_first": churn(1000, left=(500, 0))}, "inconclusive", "were not with the side"),
    ],
)
def test_the_verdict_comes_from_its_parts(changed, verdict: str, part: str) -> None:
    found = judged(**changed)
    assert found.verdict == verdict
    assert part in found.reason


def test_the_reason_keeps_to_what_was_measured() -> None:
    assert "not by RST" in judged().reason
    assert "not by RST" not in judged(reset=churn(1000, 500, "E", left=(0, 0))).reason
    assert "a constant" not in judged(short_time_wait=5.1).reason
    assert "60 s" not in judged(time_wait=121.0, short_time_wait=121.0).reason


def test_measured_tells_the_figures() -> None:
    assert judged(fin_wait_2=None).measured == (
        "TIME_WAIT is set to 60.0 s and lasts 60.3 s, 60.2 s with tcp_fin_timeout 5 (FIN_WAIT_2: "
        "not ended and 5.1 s); of 500 ports to one target 500 were used up where the client closes "
        "first (EADDRNOTAVAIL), none in 1,000 where the server does, none in 1,000 by RST; "
        "tcp_tw_reuse 1 lets them again after 1.0 s; 256 B each"
    )


@pytest.mark.parametrize(
    ("timer", "seconds"),
    [
        ("timer:(timewait,59sec,0)", 59.0),
        ("timer:(timewait,1min3sec,0)", 63.0),
        ("timer:(timewait,9.871sec,0)", 9.871),
        ("timer:(timewait,345ms,0)", 0.345),
        ("timer:(timewait,,0)", None),
        ("", None),
    ],
)
def test_timers_are_read_as_ss_prints_them(timer: str, seconds: float | None) -> None:
    line = f"TIME-WAIT 0      0      127.0.0.1:45460 127.0.0.1:5000 {timer}"
    assert lasting.left(line) == seconds
