from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_parts import kernel, share

from bench.model import bounds
from bench.model.bounds import Kernel, Room, Share
from bench.model.catalogue import CATALOGUE


def maxima(kernels: tuple[Kernel, ...], tuples: int) -> dict[str, int]:
    """Each limit's least maximum, the least first."""
    found: dict[str, int] = {}
    for one in bounds.bounds(kernels, tuples):
        found.setdefault(one.name, one.max_connections)
    return found


def least(kernels: tuple[Kernel, ...], tuples: int) -> tuple[str, int]:
    first = bounds.bounds(kernels, tuples)[0]
    return first.name, first.max_connections


limit = st.integers(min_value=0, max_value=1 << 40)
rooms = st.builds(Room, limit=limit, used=limit)
shares = st.builds(
    Share,
    host=st.sampled_from(["server1", "client1"]),
    end=st.sampled_from(["server", "client"]),
    part=st.fractions(min_value=0, max_value=1, max_denominator=64),
    nofile=st.integers(0, 1 << 30),
    nr_open=st.integers(0, 1 << 30),
    reserve=st.integers(0, 1_000),
    kernel_bytes=st.floats(1_000, 20_000),
    workers=st.none() | st.integers(1, 1024),
    watches=st.integers(0, 1),
    tracked=st.none() | rooms,
    ports=st.none() | rooms,
    tasks=st.none() | rooms,
    memory_max=st.none() | rooms,
    worker_bytes=st.sampled_from([0, 2_560 << 10]),
)
kernels = st.builds(
    Kernel,
    host=st.just("server1"),
    shares=st.lists(shares, min_size=1, max_size=4).map(tuple),
    memory=rooms,
    files=rooms,
    watches=rooms,
    tasks=rooms,
)


@given(st.lists(kernels, min_size=1, max_size=3).map(tuple), limit)
def test_the_first_bound_is_the_least_and_each_keeps_its_formula(
    some: tuple[Kernel, ...], tuples: int
) -> None:
    found = bounds.bounds(some, tuples)
    maxima = [one.max_connections for one in found]
    assert maxima == sorted(maxima) and maxima[0] >= 0
    for one in found:
        assert one.name in CATALOGUE and one.unit == CATALOGUE[one.name].unit
        expected = max(0.0, (one.limit - one.used) / one.per_connection)
        assert one.max_connections == pytest.approx(expected, rel=1e-6, abs=1.01)


@given(st.lists(kernels, min_size=1, max_size=3).map(tuple), limit)
def test_each_end_is_bound_by_the_least_of_its_own(some: tuple[Kernel, ...], tuples: int) -> None:
    found = bounds.bounds(some, tuples)
    for end, first in bounds.binding(found).items():
        own = [one.max_connections for one in found if one.end in (end, "both")]
        if end == "path":
            own = [one.max_connections for one in found if one.end == "path"]
        assert first.max_connections == min(own)


@given(kernels, limit, st.sampled_from(["memory", "files", "watches"]), st.integers(0, 1 << 40))
def test_more_of_a_kernel_limit_never_allows_less(
    one: Kernel, tuples: int, name: str, more: int
) -> None:
    room = getattr(one, name)
    raised = replace(one, **{name: Room(room.limit + more, room.used)})
    assert least((raised,), tuples)[1] >= least((one,), tuples)[1]


@given(
    shares,
    limit,
    st.sampled_from(["nofile", "nr_open", "tracked", "ports", "tasks", "memory_max"]),
    st.integers(0, 1 << 30),
)
def test_more_of_a_host_limit_never_allows_less(
    one: Share, tuples: int, name: str, more: int
) -> None:
    found = getattr(one, name)
    raised = one
    if isinstance(found, Room):
        raised = replace(one, **{name: Room(found.limit + more, found.used)})
    elif found is not None:
        raised = replace(one, **{name: found + more})
    assert least((kernel(raised),), tuples)[1] >= least((kernel(one),), tuples)[1]


@given(shares, limit, st.floats(0, 10_000))
def test_dearer_connections_never_allow_more(one: Share, tuples: int, more: float) -> None:
    dearer = replace(one, kernel_bytes=one.kernel_bytes + more)
    before = maxima((kernel(one),), tuples).get("memory", 0)
    assert maxima((kernel(dearer),), tuples).get("memory", 0) <= before


@given(st.lists(kernels, min_size=1, max_size=3).map(tuple), limit, limit)
def test_more_tuples_never_allow_less(some: tuple[Kernel, ...], tuples: int, more: int) -> None:
    assert least(some, tuples + more)[1] >= least(some, tuples)[1]


def test_a_shared_kernel_counts_both_ends() -> None:
    client = share(host="client1", end="client", part=Fraction(1, 2), watches=0)
    both = kernel(share(), client, client)
    assert maxima((both,), 9_999_999)["fs.file-max"] == 1_000_000
    ends = {one.name: one.end for one in bounds.bounds((both,), 9_999_999)}
    assert (ends["fs.file-max"], ends["fs.epoll.max_user_watches"]) == ("both", "both")
    apart = (kernel(share()), kernel(client), kernel(client))
    assert maxima(apart, 9_999_999)["fs.file-max"] == 2_000_000
    assert bounds.connection_bytes(both) == 2 * bounds.connection_bytes(kernel(share()))


@pytest.mark.parametrize(
    ("made", "bound", "most"),
    [
        # A pipe to each of 1,024 - 64 workers.
        (kernel(share(nofile=1_024)), "nofile", 960 * 960),
        (kernel(share(nofile=300, reserve=12)), "nofile", (300 - 64) * 288),
        (kernel(share(nofile=1_024, workers=2)), "nofile", 2 * 960),
        (kernel(share(nofile=4_096, nr_open=512)), "fs.nr_open", 448 * 448),
        # Of 4,000, 3,968 make whole words.
        (kernel(share(nofile=9_999, nr_open=4_000, workers=1)), "fs.nr_open", 3_904),
        (kernel(share(nofile=64)), "nofile", 0),
        (kernel(files=Room(9, 2)), "fs.file-max", 7),
        (kernel(files=Room(2, 9)), "fs.file-max", 0),
        (kernel(watches=Room(800_000, 0)), "fs.epoll.max_user_watches", 800_000),
        (kernel(share(tracked=Room(262_144, 44))), "nf_conntrack_max", 262_100),
        (kernel(share(ports=Room(28_232, 0))), "ip_local_port_range", 28_232),
        (kernel(share(part=Fraction(1, 2), tracked=Room(5, 0))), "nf_conntrack_max", 10),
        # 20,000 - 64 descriptors for each of the 3 tasks left.
        (kernel(share(tasks=Room(12, 9))), "pids", 3 * 19_936),
        (kernel(share(memory_max=Room(3_924_500, 0))), "memory.max", 1_000),
        (kernel(), "tuples", 1_000_000),
        (kernel(memory=Room(1 << 30, 1 << 30)), "memory", 0),
    ],
)
def test_each_limit_binds(made: Kernel, bound: str, most: int) -> None:
    assert least((made,), 1_000_000) == (bound, most)


def test_of_several_hosts_the_one_that_binds_first_is_named() -> None:
    roomy, narrow = (
        share(host=name, end="client", part=Fraction(1, 2), tracked=Room(most, 0))
        for name, most in (("client1", 9_000), ("client2", 100))
    )
    found = bounds.bounds((kernel(roomy), kernel(narrow)), 1_000_000)
    assert (found[0].name, found[0].end, found[0].host) == ("nf_conntrack_max", "client", "client2")
    assert found[0].max_connections == 200
    first = bounds.binding(found)
    assert first["path"].name == "tuples"
    assert "server" not in first


def test_a_given_number_of_workers_needs_no_more_tasks() -> None:
    made = kernel(share(workers=1, tasks=Room(5, 5)), tasks=Room(5, 5))
    assert "pids" not in maxima((made,), 5)


def test_hosts_of_one_kernel_share_its_tasks_and_not_their_cgroups() -> None:
    client = share(host="client1", end="client", part=Fraction(1, 2), watches=0)
    both = kernel(share(nofile=300, reserve=12), client, client, tasks=Room(400, 100))
    # A connection takes 1/288 of a worker on the server, 1/19,936 on one of two clients.
    assert maxima((both,), 10**9)["pids"] == int(300 / (1 / 288 + 1 / 19_936))
    grouped = kernel(share(nofile=300, reserve=12, tasks=Room(30, 10)), client, client)
    assert maxima((grouped,), 10**9)["pids"] == 20 * 288


def test_workers_that_are_still_to_come_take_memory() -> None:
    there = kernel(share(nofile=1_024))
    to_come = kernel(share(nofile=1_024, worker_bytes=2_560 << 10))
    more = bounds.connection_bytes(to_come) - bounds.connection_bytes(there)
    assert more == pytest.approx((2_560 << 10) / 960)


def test_what_is_not_known_or_not_used_bounds_nothing() -> None:
    made = kernel(share(watches=0), memory=None, files=None, tasks=None)
    assert set(maxima((made,), 5)) == {"tuples", "nofile"}


@pytest.mark.parametrize(
    ("nofile", "nr_open", "named", "most"),
    [
        (20_000, 1_048_576, "nofile", 19_936),
        (1_048_576, 1_048_576, "nofile", 1_048_512),  # a limit that is just fs.nr_open is met first
        (1_048_577, 1_048_576, "fs.nr_open", 1_048_512),
        (1_000_000, 999_999, "fs.nr_open", 999_936 - 64),  # whole words of descriptors
    ],
)
def test_the_lower_of_nofile_and_nr_open_ends_a_process(
    nofile: int, nr_open: int, named: str, most: int
) -> None:
    one = share(nofile=nofile, nr_open=nr_open, workers=1)
    room = Room(1 << 40, 0)
    found = {
        each.name: each.max_connections
        for each in bounds.bounds([kernel(one, memory=None, files=room, watches=room)], 1 << 40)
    }
    assert {name: found[name] for name in ("nofile", "fs.nr_open") if name in found} == {
        named: most
    }


def test_a_million_files_are_room_for_a_million_connections_less_what_is_open() -> None:
    for used, most in ((0, 1_000_000), (7_123, 992_877), (1_000_000, 0), (1_000_001, 0)):
        found = bounds.bounds([kernel(files=Room(1_000_000, used), memory=None)], 1 << 40)
        assert {one.name: one.max_connections for one in found}["fs.file-max"] == most
