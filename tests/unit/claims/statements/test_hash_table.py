"""What is judged from two sizes of the established-hash table."""

from __future__ import annotations

import pytest

from bench.claims.statements.hash_table import HashTableFound, Step, Table, judge, sized


def table(entries: int, first: float, last: float) -> Table:
    return Table(
        entries=entries,
        chain=40_000 / entries,
        steps=[Step(held=2_500, us=first), Step(held=20_000, us=last)],
        connect_us=[last, last + 1],
        echo_us=[11.0, 12.0],
    )


@pytest.mark.parametrize(
    ("small", "large", "verdict"),
    [
        ((22.0, 46.0), (22.0, 23.0), "confirmed"),
        ((22.0, 23.0), (22.0, 23.0), "refuted"),
        ((22.0, 46.0), (22.0, 46.0), "inconclusive"),  # either grew: it was not the table
        ((46.0, 46.0), (22.0, 23.0), "inconclusive"),
    ],
)
def test_it_has_to_be_slower_than_the_other_and_than_before(
    small: tuple[float, float], large: tuple[float, float], verdict: str
) -> None:
    found = HashTableFound(
        connections=20_000, small=table(512, *small), large=table(65_536, *large)
    )
    one = judge(found)
    assert one.verdict == verdict
    assert one.measured.startswith("20,000 connections: with 512 buckets opening one took ")


def test_a_table_for_so_many_has_an_entry_for_each_socket() -> None:
    assert (sized(20_000), sized(16_384), sized(16_385)) == (65_536, 32_768, 65_536)
