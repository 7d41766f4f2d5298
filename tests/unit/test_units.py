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


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "connection", "0 connections"),
        (1, "connection", "1 connection"),
        (2, "connection", "2 connections"),
        (65_536, "server endpoint", "65,536 server endpoints"),
        (1, "client address", "1 client address"),
        (2, "client address", "2 client addresses"),
        (3, "echo", "3 echoes"),
        (4, "switch", "4 switches"),
        (5, "SYN", "5 SYNs"),
        (6, "retry", "6 retries"),
    ],
)
def test_a_noun_agrees_with_its_count(number: int, noun: str, text: str) -> None:
    assert units.plural(number, noun) == text
