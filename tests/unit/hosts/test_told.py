"""A trial's figures are of the kind that a claim takes them for, or name the host."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.claims.statements import fd_levels, four_tuple, hash_table, multiplexers, time_wait
from bench.errors import LabError
from bench.hosts.told import Told


def told(**fields: Any) -> Told:
    return Told("server1", {"event": "told", **fields})


def test_figures_are_taken_as_what_they_are() -> None:
    one = told(
        held=7,
        rate=2,
        half=0.5,
        on=True,
        said="a\x1b[2Jb",
        none=None,
        pairs=[[3, "EMFILE"], [4, ""]],
        users={"root": {"hard": -1}},
        errors={"ETIMEDOUT": 3},
    )
    assert (one.number("held"), one.real("rate"), one.real("half")) == (7, 2, 0.5)
    assert one.flag("on") and one.text("said") == r"a\x1b[2Jb"
    assert one.maybe("none", Told.number) is one.maybe("absent", Told.text) is None
    assert one.maybe("held", Told.number) == 7
    assert [pair.number("0") for pair in one.each("pairs", Told.within)] == [3, 4]
    assert one.within("users").within("root").number("hard", -1) == -1
    assert one.named("errors", Told.number) == {"ETIMEDOUT": 3}
    assert told(a=1) == {"event": "told", "a": 1}


WHOLE, NUMBER = "expected a whole number", "expected a number"


@pytest.mark.parametrize(
    ("value", "take", "line"),
    [
        ("7", Told.number, f"a: got '7', {WHOLE}"),
        (True, Told.number, f"a: got True, {WHOLE}"),
        (1.5, Told.number, f"a: got 1.5, {WHOLE}"),
        (-1, Told.number, f"a: got -1, {WHOLE} from 0"),
        (1 << 64, Told.number, f"a: got {1 << 64}, {WHOLE} from 0 and below 2^64"),
        (int("9" * 4_000), Told.number, "a: got 9"),
        (None, Told.number, f"a: got None, {WHOLE}"),
        ("1.5", Told.real, f"a: got '1.5', {NUMBER}"),
        (-0.5, Told.real, f"a: got -0.5, {NUMBER} from 0"),
        (1e300, Told.real, f"a: got 1e+300, {NUMBER} from 0"),
        (int("9" * 4_000), Told.real, "a: got 9"),
        (False, Told.real, f"a: got False, {NUMBER}"),
        (1, Told.flag, "a: got 1, expected true or false"),
        (["x"], Told.text, "a: got ['x'], expected a text"),
        ("x", Told.within, "a: got 'x', expected a list or an object"),
        ([1, "x"], lambda one, name: one.each(name, Told.number), f"a.1: got 'x', {WHOLE}"),
        ([1], lambda one, name: one.each(name, Told.number, 3), "a: got [1], expected at least 3"),
        ({"b": {}}, lambda one, name: one.within(name).within("b").text("c"), "a.b.c: missing"),
        ({"b": 1}, lambda one, name: one.named(name, Told.text), "a.b: got 1, expected a text"),
    ],
)
def test_what_is_of_another_kind_names_host_and_figure(value: Any, take: Any, line: str) -> None:
    with pytest.raises(LabError, match=f"^host server1: protocol: told: {re.escape(line)}") as why:
        take(told(a=value), "a")
    assert len(str(why.value)) < 300


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["0", "1", "hard", "users", "nobody", "cases", "first", "same", "wall_us", "us"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(anything)
def test_whatever_a_host_tells_is_taken_or_named(value: Any) -> None:
    one = told(a=value)
    takers: list[Any] = [
        lambda: multiplexers._cost(one, "a"),
        lambda: one.each("a", time_wait._maybe, 4),
        lambda: one.each("a", hash_table._step, 1),
        lambda: fd_levels._limit(one.within("a"), "nobody"),
        lambda: one.each("a", Told.within),
        lambda: one.named("a", Told.real),
    ]
    for take in takers:
        try:
            take()
        except LabError as why:
            assert str(why).startswith("host server1: protocol: told: a")


def test_rounds_with_other_steps_are_named() -> None:
    step = {"held": 1, "us": 2.0}
    rounds = [told(connect_us=[step] * number, echo_us=1.0) for number in (2, 3)]
    with pytest.raises(LabError, match=r"^host server1: protocol: told: connect_us: expected as "):
        hash_table._table(256, 1_000, rounds)
    assert hash_table._table(256, 1_000, rounds[:1]).connect_us == [2.0]


def test_each_case_of_the_four_values_has_to_be_told() -> None:
    assert {"first", four_tuple.SAME, *four_tuple.ELEMENTS} > set(four_tuple.LACKING)
