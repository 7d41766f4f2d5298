"""What is judged from two sizes of the established-hash table."""

from __future__ import annotations

import pytest

from bench.claims.lookups import HashTableFound, Step, Table, judge, sized


def table(entries: int, *connect_us: float) -> Table:
    return Table(
        entries=entries,
        chain=40_000 / entries,
        steps=[Step(held=2_500, us=22.0), Step(held=20_000, us=connect_us[0])],
        connect_us=list(connect_us),
        echo_us=[11.0] * len(connect_us),
    )


@pytest.mark.parametrize(
    ("small", "large", "verdict"),
    [
        ((46.0, 45.0), (22.0, 23.0), "confirmed"),
        ((22.5, 23.0), (22.0, 23.0), "refuted"),
        ((46.0, 22.0), (22.0, 23.0), "inconclusive"),
    ],
)
def test_every_round_has_to_agree(
    small: tuple[float, ...], large: tuple[float, ...], verdict: str
) -> None:
    found = HashTableFound(
        connections=20_000, small=table(512, *small), large=table(65_536, *large)
    )
    one = judge(found)
    assert one.verdict == verdict
    assert one.measured.startswith("20,000 connections: with 512 buckets opening one took 22 µs")


def test_a_table_for_so_many_has_an_entry_for_each_socket() -> None:
    assert (sized(20_000), sized(16_384), sized(16_385)) == (65_536, 32_768, 65_536)
