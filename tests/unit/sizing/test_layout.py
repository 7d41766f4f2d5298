"""Addresses of a fleet: consecutive, apart, inside the prefix, as alias_ips takes them."""

from __future__ import annotations

import ipaddress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.sizing import layout


@given(st.integers(0, 3), st.integers(1, 300), st.integers(1, 2_000))
def test_blocks_are_apart_and_where_they_are_said_to_be(start: int, hosts: int, each: int) -> None:
    made = list(layout.blocks(start, hosts, each))
    assert len(made) == hosts
    assert all(block.count == layout.granted(each) >= each for block in made)
    base = int(layout.PREFIX.network_address)
    end = base + layout.end(start, hosts, each) * 256
    assert base + start * 256 < int(made[0].first)
    assert int(made[-1].first) + made[-1].count <= end
    for block, following in pairwise(made):
        assert int(block.first) + block.count <= int(following.first)
    for block in made:
        if block.prefix is None:
            host = int(block.first) % 256
            assert 1 <= host <= host + block.count - 1 <= 254
        else:
            assert block.first == block.prefix.network_address + 1
            assert block.count == block.prefix.num_addresses - 2


@given(st.integers(1, layout.MOST))
def test_what_is_granted_is_enough_for_a_prefix_of_least_size(each: int) -> None:
    granted = layout.granted(each)
    assert each <= granted <= layout.MOST
    assert granted == each or granted < 2 * each + 2


@pytest.mark.parametrize("bits", range(9, 17))
def test_a_prefix_is_full_to_its_last_usable_address(bits: int) -> None:
    usable = (1 << bits) - 2
    assert layout.granted(usable) == usable
    # One more than the prefix before has, of which two are no host's.
    assert layout.granted((1 << (bits - 1)) - 1) == usable


def test_the_prefix_is_for_benchmarks_and_full_at_last() -> None:
    assert str(layout.PREFIX) == "198.18.0.0/15"
    assert layout.PREFIX.num_addresses == 131_072
    assert layout.end(0, 512 * 254, 1) == layout.ROOM
    assert layout.end(0, 512 * 254 + 1, 1) > layout.ROOM
    last = list(layout.blocks(0, 512, 254))[-1]
    assert last.first + 253 == ipaddress.IPv4Address("198.19.255.254")
    assert layout.end(1, 1, layout.MOST) == layout.ROOM
