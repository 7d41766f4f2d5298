from __future__ import annotations

import pytest

from bench import units


@pytest.mark.parametrize(
    ("number", "said"),
    [(None, "not measured"), (0, "0 B"), (-3.2, "-3 B"), (1536, "1.50 KiB"), (5 << 30, "5.00 GiB")],
)
def test_sizes(number: float | None, said: str) -> None:
    assert units.size(number) == said


@pytest.mark.parametrize(
    ("microseconds", "said"),
    [(0, "0 µs"), (999, "999 µs"), (1_535, "1.53 ms"), (2_500_000, "2.5 s")],
)
def test_latencies(microseconds: int, said: str) -> None:
    assert units.latency(microseconds) == said
