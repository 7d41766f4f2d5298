"""The verdict on multiplexers, from invented figures."""

from __future__ import annotations

import pytest

from bench.claims.statements import multiplexers
from bench.claims.statements.multiplexers import MultiplexersFound, Wait


def found(
    poll: tuple[float, ...], epoll: tuple[float, ...], refused: int | None = 1024
) -> MultiplexersFound:
    waits = [
        Wait(
            watched=watched,
            select=None,
            poll=7 * of_poll,
            epoll=7 * of_epoll,
            select_cpu=None,
            poll_cpu=of_poll,
            epoll_cpu=of_epoll,
        )
        for watched, of_poll, of_epoll in zip((10, 100, 10_000), poll, epoll, strict=False)
    ]
    return MultiplexersFound(
        select_refused=refused,
        select_words="filedescriptor out of range in select()",
        select_kernel_goes_on=True,
        nofile=20_000,
        waits=waits,
    )


@pytest.mark.parametrize(
    ("given", "verdict", "part"),
    [
        (found((3, 16, 1600), (0.9, 0.9, 1.1)), "confirmed", "fd_set"),
        (found((3, 16, 1600), (0.9, 0.9, 1.1), refused=None), "refuted", "select() did not stop"),
        (found((3, 16, 1600), (0.9, 0.9, 1.1), refused=4096), "refuted", "select() did not stop"),
        (found((3, 16, 17), (0.9, 0.9, 1.1)), "refuted", "poll did not slow down"),
        (found((3, 16, 1600), (0.9, 9, 900)), "refuted", "epoll slowed down"),
        (found((3, 16, 160), (0.9, 0.9, 1.1)), "inconclusive", "neither"),
        (found((3, 16, 1600), (0.9, 0.9, 9)), "inconclusive", "neither"),
        (found((3, 16), (0.9, 0.9)), "inconclusive", "two numbers"),
    ],
)
def test_the_verdict_comes_from_growth(given: MultiplexersFound, verdict: str, part: str) -> None:
    judged = multiplexers.judge_multiplexers(given)
    assert judged.verdict == verdict
    assert part in judged.reason


def test_measured_tells_the_figures() -> None:
    judged = multiplexers.judge_multiplexers(found((3, 16, 1600), (0.9, 0.9, 1.1)))
    assert judged.measured == (
        "select() refused descriptor 1,024; processor time of a call with 100 and 10,000 watched: "
        "poll 16.0 and 1,600.0 µs, epoll 0.9 and 1.1 µs"
    )
