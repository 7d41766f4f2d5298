from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from captured import HELD, KERNELS, collected, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import capacity, facts, footprint
from bench.capacity import Kernel, Room, Share
from bench.catalogue import CATALOGUE
from bench.collect import cost, objects, slab
from bench.inventory import Host, Inventory
from bench.results import HostRecord
from bench.scenario import Scenario

WHOLE = Fraction(1)


def share(**changes: Any) -> Share:
    fields: dict[str, Any] = {
        "host": "server1",
        "end": "server",
        "part": WHOLE,
        "nofile": 20_000,
        "nr_open": 1_048_576,
        "reserve": 64,
        "kernel_bytes": 3_900.0,
        "watches": 1,
    }
    return Share(**(fields | changes))


def kernel(*shares: Share, **changes: Any) -> Kernel:
    fields: dict[str, Any] = {
        "host": "server1",
        "memory": Room(20 << 30, 0),
        "files": Room(2_000_000, 0),
        "watches": Room(5_491_511, 0),
        "tasks": Room(100_000, 100),
    }
    return Kernel(shares=shares or (share(),), **(fields | changes))


def maxima(kernels: tuple[Kernel, ...], tuples: int) -> dict[str, int]:
    """Each limit's least maximum, the least first."""
    found: dict[str, int] = {}
    for one in capacity.bounds(kernels, tuples):
        found.setdefault(one.name, one.max_connections)
    return found


def least(kernels: tuple[Kernel, ...], tuples: int) -> tuple[str, int]:
    first = capacity.bounds(kernels, tuples)[0]
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


@settings(deadline=None)
@given(st.lists(kernels, min_size=1, max_size=3).map(tuple), limit)
def test_the_first_bound_is_the_least_and_each_keeps_its_formula(
    some: tuple[Kernel, ...], tuples: int
) -> None:
    found = capacity.bounds(some, tuples)
    maxima = [one.max_connections for one in found]
    assert maxima == sorted(maxima) and maxima[0] >= 0
    for one in found:
        assert one.name in CATALOGUE and one.unit == CATALOGUE[one.name].unit
        expected = max(0.0, (one.limit - one.used) / one.per_connection)
        assert one.max_connections == pytest.approx(expected, rel=1e-6, abs=1.01)


@settings(deadline=None)
@given(st.lists(kernels, min_size=1, max_size=3).map(tuple), limit)
def test_each_end_is_bound_by_the_least_of_its_own(some: tuple[Kernel, ...], tuples: int) -> None:
    found = capacity.bounds(some, tuples)
    for end, first in capacity.binding(found).items():
        own = [one.max_connections for one in found if one.end in (end, "both")]
        if end == "path":
            own = [one.max_connections for one in found if one.end == "path"]
        assert first.max_connections == min(own)


@settings(deadline=None)
@given(kernels, limit, st.sampled_from(["memory", "files", "watches"]), st.integers(0, 1 << 40))
def test_more_of_a_kernel_limit_never_allows_less(
    one: Kernel, tuples: int, name: str, more: int
) -> None:
    room = getattr(one, name)
    raised = replace(one, **{name: Room(room.limit + more, room.used)})
    assert least((raised,), tuples)[1] >= least((one,), tuples)[1]


@settings(deadline=None)
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


@settings(deadline=None)
@given(shares, limit, st.floats(0, 10_000))
def test_dearer_connections_never_allow_more(one: Share, tuples: int, more: float) -> None:
    dearer = replace(one, kernel_bytes=one.kernel_bytes + more)
    before = maxima((kernel(one),), tuples).get("memory", 0)
    assert maxima((kernel(dearer),), tuples).get("memory", 0) <= before


@settings(deadline=None)
@given(st.lists(kernels, min_size=1, max_size=3).map(tuple), limit, limit)
def test_more_tuples_never_allow_less(some: tuple[Kernel, ...], tuples: int, more: int) -> None:
    assert least(some, tuples + more)[1] >= least(some, tuples)[1]


def test_a_shared_kernel_counts_both_ends() -> None:
    client = share(host="client1", end="client", part=Fraction(1, 2), watches=0)
    both = kernel(share(), client, client)
    assert maxima((both,), 9_999_999)["fs.file-max"] == 1_000_000
    ends = {one.name: one.end for one in capacity.bounds((both,), 9_999_999)}
    assert (ends["fs.file-max"], ends["fs.epoll.max_user_watches"]) == ("both", "both")
    apart = (kernel(share()), kernel(client), kernel(client))
    assert maxima(apart, 9_999_999)["fs.file-max"] == 2_000_000
    assert capacity.connection_bytes(both) == 2 * capacity.connection_bytes(kernel(share()))


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
    found = capacity.bounds((kernel(roomy), kernel(narrow)), 1_000_000)
    assert (found[0].name, found[0].end, found[0].host) == ("nf_conntrack_max", "client", "client2")
    assert found[0].max_connections == 200
    first = capacity.binding(found)
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
    more = capacity.connection_bytes(to_come) - capacity.connection_bytes(there)
    assert more == pytest.approx((2_560 << 10) / 960)


def test_a_table_without_a_maximum_bounds_nothing() -> None:
    found = predict(False, tracking=True, **{"net.netfilter.nf_conntrack_max": "0"})
    assert "nf_conntrack_max" not in found.limits


def test_what_is_not_known_or_not_used_bounds_nothing() -> None:
    made = kernel(share(watches=0), memory=None, files=None, tasks=None)
    assert set(maxima((made,), 5)) == {"tuples", "nofile"}


@pytest.mark.parametrize(
    ("name", "read", "watch"),
    [("5.10", 202_895, 128 + 72), ("6.1", 218_824, 120 + 64), ("6.18", 5_491_511, 120 + 64)],
)
def test_default_of_max_user_watches_is_the_kernels(name: str, read: int, watch: int) -> None:
    total = int(texts(name, "before")["meminfo"].split()[1])
    assert read <= capacity.watches_default(total, watch) < 1.02 * read


@pytest.mark.parametrize("name", KERNELS)
def test_objects_predict_what_was_measured(name: str) -> None:
    """Both ends, server in epoll, from ``before`` alone against the growth to ``peak``."""
    before = texts(name, "before")
    caches = slab.parse(before["slabinfo"])
    aliases = slab.parse_aliases(before["slab_aliases"])
    expected = sum(
        objects.endpoint_bytes(part, name, caches, aliases)
        for part in (objects.parts(server=True, watched=True), objects.parts(server=False))
    )
    phases = {p: facts.phase(collected(name, p)) for p in ("before", "peak")}
    host = HostRecord(
        groups=["servers"], kernel=name, python="", cpu=1, mem_total_kib=1, phases=phases
    )
    measured = cost.kernel_bytes({"server1": host}, shared_kernel=True).both_ends
    assert measured is not None
    assert expected == pytest.approx(measured, rel=0.03)
    # Without the host's own slabinfo the table says nearly the same.
    table = sum(
        objects.endpoint_bytes(part, name, {}, {})
        for part in (objects.parts(server=True, watched=True), objects.parts(server=False))
    )
    assert table == pytest.approx(expected, rel=0.01)


def test_a_bind_bucket_serves_a_port_on_all_addresses() -> None:
    assert objects.parts(server=False, sources=8)["tcp_bind_bucket"] == 1 / 8
    assert "tcp_bind_bucket" not in objects.parts(server=True)
    assert "TCPv6" in objects.parts(server=True, v6=True)
    assert objects.parts(server=True, tracked=True)["nf_conntrack"] == 1


@pytest.mark.parametrize(
    ("name", "row"),
    [("4.19.0", (5, 10)), ("5.15.1", (5, 10)), ("6.12.9-amd64", (6, 1)), ("7.0", (6, 18))],
)
def test_table_row(name: str, row: tuple[int, int]) -> None:
    assert objects.row(name) is objects.TABLE[row]


def test_release_is_checked() -> None:
    with pytest.raises(ValueError, match="does not start with a release"):
        objects.release("next")


CONNECTIONS = 100_000


def record(name: str, *groups: str, **sysctl: str) -> HostRecord:
    return HostRecord(
        groups=list(groups),
        kernel="6.1.0-56-cloud-amd64",
        python="3.11.2",
        cpu=2,
        mem_total_kib=990_000,
        limits={"nofile_hard": 20_000, "nofile_soft": 1_024},
        sysctl={
            "fs.file-max": "2466177",
            "fs.nr_open": "1048576",
            "fs.epoll.max_user_watches": "218824",
            **sysctl,
        },
        phases={"before": facts.phase(collected(name, "before"))},
    )


def lab(underlay: bool) -> Inventory:
    def host(name: str, group: str, first: str) -> Host:
        return Host(name, (group,), name, 22, "lab", None, None, (first,))

    hosts = {
        "server1": host("server1", "servers", "198.18.0.1"),
        "client1": host("client1", "clients", "198.18.1.1"),
        "client2": host("client2", "clients", "198.18.2.1"),
    }
    return Inventory(
        source="test",
        substrate="local",
        hosts=hosts,
        underlay=underlay,
        state=None,
        connections=None,
    )


def predict(underlay: bool, watch: Any = "epoll", tracking: bool = False, **sysctl: str) -> Any:
    hosts = {
        "server1": record("6.1", "servers", **sysctl),
        "client1": record("6.1", "clients"),
        "client2": record("6.1", "clients"),
    }
    hosts["server1"].limits["tracking"] = tracking
    evidence = {name: texts("6.1", "before") for name in hosts}
    scenario = Scenario(
        name="test", title="test", memory_floor_mib=100, watch=watch, connections=CONNECTIONS
    )
    return capacity.predict(scenario, lab(underlay), hosts, evidence, 129_024)


def test_prediction_of_a_lab_with_kernels_apart() -> None:
    found = predict(underlay=False)
    before = facts.phase(collected("6.1", "before"))
    free = before.meminfo_kib["MemAvailable"] * 1024 - 449 * 1_100 - (100 << 20)
    per = found.kernel_bytes_per_connection + footprint.FD_BYTES + footprint.HELD_BYTES
    assert found.limits["memory"] == pytest.approx(free / per, rel=1e-3)
    assert found.limits["fs.file-max"] == 2_466_177 - 449
    assert found.limits["fs.epoll.max_user_watches"] == 218_824
    assert (found.bound_by, found.max_connections) == ("tuples", 129_024)
    assert list(found.limits.values()) == sorted(found.limits.values())


def test_prediction_of_a_lab_on_one_kernel() -> None:
    apart, shared = predict(underlay=False), predict(underlay=True)
    assert shared.kernel_bytes_per_connection == pytest.approx(
        2 * apart.kernel_bytes_per_connection, rel=0.02
    )
    assert shared.limits["fs.file-max"] == (2_466_177 - 449) // 2
    assert shared.limits["memory"] == pytest.approx(apart.limits["memory"] / 2, rel=0.02)


@pytest.mark.parametrize(("watch", "each"), [("epoll", 3_918), ("none", 3_710)])
def test_forecast_of_a_server_with_a_kernel_of_its_own(watch: str, each: int) -> None:
    found = predict(underlay=False, watch=watch)
    said, before = found.forecast, facts.phase(collected("6.1", "before"))
    assert (said.host, said.connections) == ("server1", CONNECTIONS)
    assert said.mem_free_kib == before.meminfo_kib["MemFree"]
    assert said.mem_available_kib == before.meminfo_kib["MemAvailable"]
    assert said.slab_kib * 1024 / CONNECTIONS == pytest.approx(each, rel=1e-3)
    assert said.slab_kib * 1024 / CONNECTIONS == pytest.approx(
        found.kernel_bytes_per_connection, rel=1e-3
    )
    taken = said.slab_kib + said.descriptors_kib + said.agents_kib
    assert said.mem_free_expected_kib == pytest.approx(said.mem_free_kib - taken, abs=2)


@pytest.mark.parametrize("name", ["5.10", "6.1"])
def test_forecast_comes_near_what_was_left(name: str) -> None:
    """Captured in virtual machines of little else: both ends on one kernel, server in epoll."""
    before, peak = (facts.phase(collected(name, p)).meminfo_kib for p in ("before", "peak"))
    caches = slab.parse(texts(name, "before")["slabinfo"])
    aliases = slab.parse_aliases(texts(name, "before")["slab_aliases"])
    both = [
        share(kernel_bytes=objects.endpoint_bytes(parts, name, caches, aliases))
        for parts in (objects.parts(server=True, watched=True), objects.parts(server=False))
    ]
    said = capacity.forecast("server1", before, kernel(*both), HELD[name])
    taken = before["MemFree"] - peak["MemFree"]
    assert said.mem_free_kib - said.mem_free_expected_kib == pytest.approx(taken, rel=0.1)


def test_forecast_of_a_shared_kernel_counts_both_ends() -> None:
    apart, shared = (predict(underlay).forecast for underlay in (False, True))
    assert (shared.host, shared.connections) == ("server1", CONNECTIONS)
    assert shared.slab_kib == pytest.approx(2 * apart.slab_kib, rel=0.02)
    assert shared.descriptors_kib == pytest.approx(2 * apart.descriptors_kib, abs=1)
    assert shared.agents_kib == pytest.approx(2 * apart.agents_kib, abs=1)


def test_forecast_of_more_than_fits_is_negative_and_splits_over_servers() -> None:
    memory = {"MemFree": 1_000_000, "MemAvailable": 900_000}
    half = kernel(share(part=Fraction(1, 2)))
    said = capacity.forecast("server2", memory, half, 1_000_001, Fraction(1, 2))
    assert said.connections == 500_001
    assert said.slab_kib == pytest.approx(500_000 * 3_900 / 1024, rel=1e-5)
    assert said.mem_free_expected_kib < 0


def test_nothing_is_forecast_of_a_server_that_told_no_memory() -> None:
    hosts = {"server1": record("6.1", "servers"), "client1": record("6.1", "clients")}
    hosts["server1"].phases["before"].meminfo_kib = {}
    wanted = Scenario(name="test", title="test")
    assert capacity.predict(wanted, lab(False), hosts, {}, 5).forecast is None
    hosts["server1"].phases = {}
    assert capacity.predict(wanted, lab(False), hosts, {}, 5).forecast is None


def test_conntrack_counts_where_it_is_active() -> None:
    """Entries outlive the rules that wanted them: their number alone says nothing."""
    table = {"net.netfilter.nf_conntrack_max": "65536", "net.netfilter.nf_conntrack_count": "9"}
    assert "nf_conntrack_max" not in predict(False, **table).limits
    found = predict(False, tracking=True, **table)
    assert (found.bound_by, found.max_connections) == ("nf_conntrack_max", 65_527)
    more = found.kernel_bytes_per_connection - predict(False).kernel_bytes_per_connection
    assert more == pytest.approx(256, abs=0.1)


def test_held_is_in_the_captured_data() -> None:
    assert set(HELD) == set(KERNELS)
