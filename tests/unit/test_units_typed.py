"""Sizes, counts and percentages as people type them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import units


@given(st.integers(0, 10**9), st.sampled_from(sorted(units.BYTES)), st.sampled_from(["", " "]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str, between: str) -> None:
    expected = number * units.BYTES[unit]
    assert units.parse_size(f"{number}{between}{unit}") == expected
    assert units.parse_size(f" {number:_}{between}{unit} ") == expected
    assert units.parse_size(f"{number:,}{between}{unit}") == expected


@given(st.integers(0, 10**15))
def test_a_plain_number_is_bytes(number: int) -> None:
    assert units.parse_size(str(number)) == number


@given(st.integers(1, 2**20), st.sampled_from([1 << 10, 1 << 20, 1 << 30]))
def test_what_is_said_in_quarters_is_understood_again(quarters: int, unit: int) -> None:
    number = quarters * unit // 4
    said = units.size(number)
    if number * 100 % max(size for size in (1 << 30, 1 << 20, 1 << 10, 1) if number >= size) == 0:
        assert units.parse_size(said) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("64GB", 64 * 10**9),
        ("64GiB", 64 * 2**30),
        ("1.5TiB", 3 * 2**39),
        ("0.5 kB", 500),
        ("1_024 MiB", 2**30),
    ],
)
def test_sizes(text: str, number: int) -> None:
    assert units.parse_size(text) == number


NO_SIZE = (
    *("", "GiB", "64QB", "64gib", "64 G", "-1GiB", "1.5B", "1e3", "1__0", "1,00", "٣GiB"),
    *("64GiB\n64GiB", "inf", "nan", "0x10", "1.GiB", ".5GiB", "9" * 40),
)


@pytest.mark.parametrize("text", NO_SIZE)
def test_what_is_no_size_is_told_the_units(text: str) -> None:
    with pytest.raises(ValueError, match=r"a size such as 64GiB, in B, kB, .*GiB.*plain number"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [("10_000_000", 10**7), ("10,000,000", 10**7), ("10M", 10**7), ("1.5M", 1_500_000), ("0", 0)],
)
def test_counts(text: str, number: int) -> None:
    assert units.parse_count(text) == number


@pytest.mark.parametrize("text", ["", "1.5", "1.0000001M", "10MB", "-5", "ten", "1 0"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(ValueError, match="a whole number such as"):
        units.parse_count(text)


@pytest.mark.parametrize(
    ("text", "part"), [("10%", Fraction(1, 10)), (" 0% ", Fraction(0)), ("2.5%", Fraction(1, 40))]
)
def test_percentages(text: str, part: Fraction) -> None:
    assert units.parse_percentage(text) == part


@pytest.mark.parametrize("text", ["", "10", "%", "10%%", "10 k%", "0.1", "-1%"])
def test_what_is_no_percentage(text: str) -> None:
    with pytest.raises(ValueError, match="a percentage such as 10%"):
        units.parse_percentage(text)


@pytest.mark.parametrize("parse", [units.parse_size, units.parse_count, units.parse_percentage])
@given(st.text(max_size=40))
def test_no_text_raises_anything_else(parse: Callable[[str], object], text: str) -> None:
    try:
        parse(text)
    except ValueError as error:
        assert "such as" in str(error)
