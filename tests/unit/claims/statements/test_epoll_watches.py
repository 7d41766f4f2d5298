"""Verdicts on what bounds epoll watches, from invented figures."""

from __future__ import annotations

import pytest

from bench.claims.statements.epoll_watches import EpollWatchesFound, judge_epoll_watches

WATCHED = EpollWatchesFound(
    mem_total_kib=3_922_676,
    default=803_000,
    formula=810_000,
    watch_bytes=200.0,
    at_said=803_000,
    limit=3_000,
    held=2_990,
    refused=4,
    bound_by="fs.epoll.max_user_watches",
)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "confirmed"),
        ({"at_said": 900_000}, "depends"),
        ({"default": 600_000}, "depends"),
        ({"bound_by": "none", "refused": 0, "held": 4_000}, "refuted"),
        ({"bound_by": "none", "refused": 0}, "inconclusive"),
        ({"bound_by": "memory", "refused": 0}, "inconclusive"),
        ({"bound_by": "nofile", "refused": 0}, "inconclusive"),
        ({"bound_by": "ramp_timeout_seconds"}, "inconclusive"),
        ({"refused": 0}, "refuted"),
        ({"held": 1_500}, "inconclusive"),
        ({"held": 3_001}, "inconclusive"),
        ({"limit": None, "held": None, "shared": "one kernel"}, "not measurable here"),
    ],
)
def test_watches_are_judged_by_where_they_ended(changes, verdict) -> None:
    assert judge_epoll_watches(WATCHED.model_copy(update=changes)).verdict == verdict
