"""What is judged from processes under a cap."""

from __future__ import annotations

from typing import Any

import pytest

from bench.claims.statements.processes import Capped, ProcessesFound, Shares, judge

SHARES = {"rates": [20_000.0, 30_000.0], "least": 900, "most": 4_900, "mean": 2_500.0}


def capped(processes: int, held: int, **fields: Any) -> Capped:
    usual: dict[str, Any] = {"refused": 40, "bound_by": "nofile server"}
    return Capped(processes=processes, held=held, **{**usual, **fields})


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([capped(1, 1_011), capped(2, 2_022), capped(4, 4_044)], "confirmed"),
        ([capped(1, 1_011), capped(2, 1_011)], "refuted"),
        ([capped(1, 1_011), capped(2, 2_021)], "inconclusive"),
        ([capped(1, 1_011)], "inconclusive"),
        ([capped(1, 1_011), capped(2, 2_022, bound_by="memory")], "inconclusive"),
        ([capped(1, 1_011), capped(2, 2_022, refused=0)], "inconclusive"),
    ],
)
def test_so_many_processes_have_to_hold_so_many_times_as_much(
    rows: list[Capped], verdict: str
) -> None:
    one = judge(
        ProcessesFound(
            nofile=1_024,
            capped=rows,
            shared=Shares(**SHARES),
            reuseport=Shares(**SHARES),
            ratio=1.2,
        )
    )
    assert one.verdict == verdict
    assert one.measured.startswith("nofile 1,024: 1,011 by 1")
