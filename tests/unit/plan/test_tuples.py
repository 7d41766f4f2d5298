"""Properties of the plan: no tuple twice, exactly N, a fair split."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import InputError
from bench.plan.tuples import fair, plan


@given(st.integers(0, 10_000), st.lists(st.integers(0, 3_000), min_size=1, max_size=12))
def test_fair_is_exact_and_even(total: int, capacities: list[int]) -> None:
    if total > sum(capacities):
        with pytest.raises(ValueError, match="does not fit"):
            fair(total, capacities)
        return
    shares = fair(total, capacities)
    assert sum(shares) == total
    assert all(0 <= share <= most for share, most in zip(shares, capacities, strict=True))
    room = [share for share, most in zip(shares, capacities, strict=True) if share < most]
    assert not room or max(shares) - min(room) <= 1


@given(
    clients=st.integers(1, 4),
    sources=st.integers(1, 4),
    targets=st.integers(1, 3),
    ports=st.integers(1, 40),
    data=st.data(),
)
def test_plan(clients: int, sources: int, targets: int, ports: int, data: st.DataObject) -> None:
    capacity = clients * sources * targets * ports
    wanted = data.draw(st.integers(1, capacity))
    endpoints = [("198.18.0.1", 5000 + number) for number in range(targets)]
    names = {
        f"client{one}": [f"198.18.{one}.{two}" for two in range(1, sources + 1)]
        for one in range(1, clients + 1)
    }
    made = plan(wanted, names, endpoints, 1024, 1024 + ports - 1)
    tuples = [
        (block["source"], port, block["target"], block["target_port"])
        for blocks in made.blocks.values()
        for block in blocks
        for port in range(block["first_port"], block["first_port"] + block["count"])
    ]
    assert made.capacity == capacity
    assert len(tuples) == wanted == len(set(tuples))
    assert all(1024 <= port < 1024 + ports for _, port, _, _ in tuples)
    assert all(
        block["source"] in names[name] for name, blocks in made.blocks.items() for block in blocks
    )
    shares = [made.share(name) for name in names]
    assert max(shares) - min(shares) <= 1
    assert made.held_by(endpoints) == wanted
    # A source takes a port twice only when its shares exceed the ports it has.
    for source, held in Counter(source for source, *_ in tuples).items():
        used = {port for one, port, *_ in tuples if one == source}
        assert len(used) == min(held, ports)


def test_one_more_than_the_tuples_is_refused() -> None:
    names = {"client1": ["198.18.1.1"]}
    with pytest.raises(InputError, match=r"connections: got 64513, expected at most the 64512"):
        plan(64_513, names, [("198.18.0.1", 5000)], 1024, 65_535)


def test_families_do_not_mix() -> None:
    names = {"client1": ["198.18.1.1", "fd63:6f6e:6e6c::101"]}
    made = plan(4, names, [("198.18.0.1", 5000), ("fd63:6f6e:6e6c::1", 5000)], 1024, 1025)
    assert {(block["source"], block["target"]) for block in made.blocks["client1"]} == {
        ("198.18.1.1", "198.18.0.1"),
        ("fd63:6f6e:6e6c::101", "fd63:6f6e:6e6c::1"),
    }
