"""How many of a lab's connections fall to each host, where they do not divide evenly."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from tune_loader import load

from bench.model import fit
from bench.scenario import MOST_CONNECTIONS

share = load("lab_common", "filter_plugins", "connlab_share")
GROUPS = {
    "servers": ["s1", "s2"],
    "clients": ["c1", "c2", "c3"],
    "proxies": ["p1", "p2"],
    "routers": ["r1"],
}


def test_shares_are_rounded_up_and_a_proxy_holds_both_ends() -> None:
    found = share.connlab_shares("1001", GROUPS)
    assert found == {
        **dict.fromkeys(GROUPS["servers"], 501),
        **dict.fromkeys(GROUPS["clients"], 334),
        **dict.fromkeys(GROUPS["proxies"], 1002),
        "r1": 1001,
    }


def test_a_host_that_is_on_two_sides_holds_both() -> None:
    found = share.connlab_shares(7, {"servers": ["a"], "clients": ["a", "b"], "routers": ["b"]})
    assert found == {"a": 7 + 4, "b": 4 + 7}


def test_a_host_of_no_side_may_have_all() -> None:
    assert share.connlab_share(7, GROUPS, "other") == 7
    assert share.connlab_share(7, GROUPS, "c1") == 3


def test_all_keep_the_same_descriptors_beside_the_connections() -> None:
    roles = [load(role, "filter_plugins", role) for role in ("tune_sysctl", "tune_limits")]
    assert {role.DESCRIPTOR_RESERVE for role in roles} == {fit.NOFILE_MARGIN}


@pytest.mark.parametrize("number", [1, "100000000", MOST_CONNECTIONS])
def test_numbers_that_are_taken(number: Any) -> None:
    assert share.whole_connections(number) == int(number)


@pytest.mark.parametrize("number", [0, 100_000_001, "-1", "1.5", "", "1e6", "²"])
def test_numbers_that_are_refused(number: Any) -> None:
    with pytest.raises(AnsibleFilterError, match=r"^connections: .*, expected a whole number from"):
        share.whole_connections(number)
