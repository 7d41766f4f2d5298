from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bench.model import fit
from bench.model.catalogue import CATALOGUE
from bench.results.format import Bound


def bound(name: str, limit: int, used: int = 0, per: float = 1.0, **other: str) -> Bound:
    return Bound.model_validate(
        {
            "name": name,
            "end": "server",
            "host": "server1",
            "max_connections": max(0, math.floor((limit - used) / per)),
            "limit": limit,
            "used": used,
            "per_connection": per,
            "unit": CATALOGUE[name].unit,
            **other,
        }
    )


@given(
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 20),
    st.fractions(min_value=1 / 64, max_value=5_000, max_denominator=64).map(float),
    st.integers(1, 100_000_000),
)
def test_with_what_is_needed_it_fits(limit: int, used: int, per: float, wanted: int) -> None:
    low = bound("fs.file-max", limit, used, per)
    raised = fit.needed(low, wanted)
    assert bound("fs.file-max", raised, used, per).max_connections >= wanted - 1
    assert bound("fs.file-max", raised - math.ceil(2 * per), used, per).max_connections < wanted


def test_only_what_is_too_low_has_to_change() -> None:
    low = fit.changes([bound("fs.file-max", 500, 100), bound("nofile", 9_000)], 1_000)
    assert [(one.bound.name, one.needed) for one in low] == [("fs.file-max", 1_100)]


def test_a_limit_that_is_just_enough_stays() -> None:
    enough = bound("fs.file-max", 1_100, 100)
    assert enough.max_connections == 1_000
    assert fit.changes([enough], 1_000) == []
    assert [one.needed for one in fit.changes([enough], 1_001)] == [1_101]


def test_variables_are_those_of_the_tuning_roles() -> None:
    low = fit.changes(
        [
            bound("fs.file-max", 500),
            bound("nf_conntrack_max", 100),
            bound("nofile", 1_024, 8),
            bound("fs.nr_open", 900, 8),
            bound("tuples", 10, end="path", host=""),
        ],
        50_000,
    )
    assert fit.variables(low, 50_000) == {
        "connections": 50_000,
        "tune_sysctl_extra": {
            "fs.file-max": 50_000 + 6_250 + 4_096,
            "net.netfilter.nf_conntrack_max": 50_000 + 6_250 + 4_096,
            "fs.nr_open": 50_008 + 6_251 + 4_096,
        },
    }
    text = fit.vars_file(low, 50_000, "inventory/local")
    assert yaml.safe_load(text) == fit.variables(low, 50_000)
    assert "# tuples: 10 four-tuples found, 50,000 needed:" in text
    assert "# nofile on server1: 1,024 descriptors a process found, 50,008 needed:" in text
    assert "# fs.file-max" not in text


def test_of_several_hosts_the_largest_value_is_written() -> None:
    low = fit.changes([bound("fs.file-max", 5), bound("fs.file-max", 5, 90, 2.0)], 100)
    assert fit.variables(low, 100)["tune_sysctl_extra"] == {"fs.file-max": 290 + 36 + 4_096}


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_every_limit_has_its_source_and_its_cure(name: str) -> None:
    entry = CATALOGUE[name]
    assert all(len(text) > 3 for text in entry)
