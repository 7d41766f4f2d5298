"""The verdict on TCP in user space, from invented figures."""

from __future__ import annotations

from typing import Any

import pytest

from bench.claims.statements import userland_tcp
from bench.claims.statements.userland_tcp import UserlandTcpFound

FOUND: dict[str, Any] = {
    "tried": 20,
    "tried_answered": 20,
    "tried_resets": 20,
    "tried_out_rsts": 20,
    "tried_held": 0,
    "wanted": 2000,
    "held": 2000,
    "resets": 0,
    "out_rsts": 2000,
    "kernel_sockets": 0,
    "open_files": 64,
    "echoes_asked": 100,
    "echoes_answered": 100,
    "left": 0,
    "rate": 9000.0,
    "kernel_rate": 12000.0,
    "bytes_each": 12.0,
    "kernel_bytes_each": 3773.0,
}


@pytest.mark.parametrize(
    ("changed", "verdict", "part"),
    [
        ({}, "confirmed", "two sequence numbers"),
        ({"tried_held": 20, "tried_resets": 0}, "refuted", "without anything being done"),
        ({"held": 1999}, "refuted", "failed all the same"),
        ({"echoes_answered": 99}, "refuted", "failed all the same"),
        ({"tried_answered": 0, "tried_resets": 0}, "inconclusive", "answered no SYN"),
        ({"tried_resets": 0}, "inconclusive", "not by RSTs"),
        ({"resets": 1}, "inconclusive", "not kept out"),
        ({"kernel_sockets": 1}, "inconclusive", "not kept out"),
    ],
)
def test_the_verdict_comes_from_the_figures(changed, verdict: str, part: str) -> None:
    judged = userland_tcp.judge_userland_tcp(UserlandTcpFound.model_validate({**FOUND, **changed}))
    assert judged.verdict == verdict
    assert part in judged.reason


def test_measured_tells_the_figures() -> None:
    judged = userland_tcp.judge_userland_tcp(UserlandTcpFound.model_validate(FOUND))
    assert judged.measured == (
        "20 by hand: 20 RSTs by the client's own kernel, 0 held; with them dropped 2,000 of 2,000 "
        "held with 0 sockets and 64 open files, 12 B each (a kernel socket: 3,773 B), 9,000 a "
        "second (connect(2): 12,000)"
    )
