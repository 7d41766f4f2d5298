from __future__ import annotations

import pytest

from bench import units


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (None, "not measured"),
        (0, "0 B"),
        (-3.2, "-3 B"),
        (1023, "1,023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (1 << 20, "1.00 MiB"),
        ((1 << 30) - 1, "1,024.00 MiB"),
        (1 << 30, "1.00 GiB"),
        (5 << 30, "5.00 GiB"),
    ],
)
def test_sizes(number: float | None, said: str) -> None:
    assert units.size(number) == said


@pytest.mark.parametrize(
    ("microseconds", "said"),
    [
        (0, "0 µs"),
        (999, "999 µs"),
        (1_000, "1 ms"),
        (1_535, "1.53 ms"),
        (1_000_000, "1 s"),
        (2_500_000, "2.5 s"),
    ],
)
def test_latencies(microseconds: int, said: str) -> None:
    assert units.latency(microseconds) == said


@pytest.mark.parametrize(
    ("text", "size"), [("1MB", 1_000_000), ("1MiB", 1_048_576), ("1.5kB", 1_500), ("1GB", 10**9)]
)
def test_units_are_those_of_the_si_and_of_iec(text: str, size: int) -> None:
    assert units.parse_size(text) == size
