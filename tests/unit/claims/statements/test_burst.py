"""The verdict on bursts, from invented figures."""

from __future__ import annotations

import pytest

from bench.claims.statements import burst
from bench.claims.statements.burst import Burst, BurstFound


def sent(backlog: int, connects: int, timed_out: int = 0, lost: int = 0, drops: int = 0) -> Burst:
    connected = connects - timed_out
    return Burst(
        backlog=backlog,
        connects=connects,
        connected=connected,
        timed_out=timed_out,
        failed=0,
        connect_ms=[1.0, 2.0, 3.0] if connected else [],
        served=connected - lost,
        served_ms=[1.0, 2.0, 3.0] if connected - lost else [],
        stranded=lost,
        listen_overflows=drops,
        listen_drops=drops,
        syn_retransmits=drops,
    )


def found(rows: list[Burst], cured: Burst) -> BurstFound:
    return BurstFound(nap_ms=1.0, timeout_ms=3000, answer_ms=3000, bursts=rows, cured=cured)


FINE = sent(128, 100)
LATE = sent(128, 1000, timed_out=300, lost=200, drops=900)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (found([FINE, LATE], sent(65_535, 1000)), "depends"),
        (found([FINE, sent(128, 1000, lost=2, drops=2)], sent(65_535, 1000)), "depends"),
        (found([FINE, LATE], sent(65_535, 1000, timed_out=1, drops=1)), "confirmed"),
        (found([FINE, LATE], sent(65_535, 1000, lost=1, drops=1)), "confirmed"),
        (found([FINE, LATE], sent(65_535, 1000, timed_out=1)), "inconclusive"),
        (found([FINE, LATE], sent(65_535, 1000, lost=1)), "inconclusive"),
        (found([FINE], sent(65_535, 5000, lost=1)), "inconclusive"),
        (found([FINE], sent(65_535, 5000, lost=1, drops=1)), "inconclusive"),
        (found([sent(128, 1000, lost=9)], sent(65_535, 1000, lost=1, drops=1)), "inconclusive"),
        (found([FINE, sent(128, 5000)], sent(65_535, 5000)), "refuted"),
        (found([FINE, sent(128, 1000)], sent(65_535, 1000)), "inconclusive"),
        (found([FINE, sent(128, 1000, timed_out=300)], sent(65_535, 1000)), "inconclusive"),
    ],
)
def test_the_verdict_comes_from_who_was_served(given: BurstFound, verdict: str) -> None:
    assert burst.judge_burst(given).verdict == verdict


def test_measured_tells_the_first_burst_that_failed() -> None:
    judged = burst.judge_burst(found([FINE, LATE], sent(65_535, 1000)))
    assert judged.measured == (
        "backlog 128, 1 ms an accept: all of 100 connects at once were served, 500 of 1,000 were "
        "not (300 connects timed out, 200 were ESTAB on the client alone; 900 ListenDrops); "
        "backlog 65,535: 0 of 1,000 were not"
    )
