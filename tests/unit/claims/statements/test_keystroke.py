from __future__ import annotations

import pytest

from bench.claims.statements.keystroke import KeystrokeFound, Size, judge


def found(
    seconds: float, alone: float, unanswered: int = 0, connections: int = 10_000
) -> KeystrokeFound:
    size = Size(
        connections=connections,
        seconds=seconds,
        p50_us=1_000,
        p99_us=9_000,
        cpu_us=25.0,
        unanswered=unanswered,
    )
    return KeystrokeFound(
        sizes=[size], sequential_asked=2_000, sequential_seconds=alone, sequential_p50_us=80
    )


@pytest.mark.parametrize(
    ("seconds", "alone", "unanswered", "verdict"),
    [
        (0.3, 0.1, 0, "refuted"),
        (0.3, 0.2, 0, "depends"),
        (1.2, 0.1, 0, "confirmed"),
        (0.3, 0.1, 1, "inconclusive"),
    ],
)
def test_the_seconds_of_ten_thousand_sessions_decide(
    seconds: float, alone: float, unanswered: int, verdict: str
) -> None:
    assert judge(found(seconds, alone, unanswered)).verdict == verdict


@pytest.mark.parametrize(
    ("connections", "seconds", "alone", "verdict"),
    [
        (10_000, 1.0, 0.1, "confirmed"),  # just the second
        (10_000, 0.999, 0.1, "refuted"),
        (10_000, 0.5, 0.2, "depends"),  # 2,000 one by one in a fifth of it
        (20_000, 1.9, 0.1, "refuted"),
        (20_000, 2.0, 0.1, "confirmed"),
        (2_000, 0.21, 0.1, "confirmed"),
    ],
)
def test_seconds_are_those_of_ten_thousand(
    connections: int, seconds: float, alone: float, verdict: str
) -> None:
    assert judge(found(seconds, alone, connections=connections)).verdict == verdict


def test_the_seconds_are_told() -> None:
    one = judge(found(0.3, 0.1))
    assert one.measured == (
        "10,000 held: 0.30 s, p99 9.0 ms, 25 µs of CPU each; one after the other 0.10 s for 2,000"
    )
    assert one.reason.endswith("0.30 s for 10,000 sessions at once, 0.50 s one after the other")
