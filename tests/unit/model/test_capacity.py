from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from captured import HELD, KERNELS, collected, texts
from model_parts import CONNECTIONS, kernel, lab, predict, record, share

from bench.collect import slab
from bench.model import capacity, footprint, headroom, objects
from bench.plan.topology import Topology
from bench.results import facts
from bench.scenario import Scenario


@pytest.mark.parametrize(
    ("name", "read", "watch"),
    [("5.10", 202_895, 128 + 72), ("6.1", 218_824, 120 + 64), ("6.18", 5_491_511, 120 + 64)],
)
def test_default_of_max_user_watches_is_the_kernels(name: str, read: int, watch: int) -> None:
    total = int(texts(name, "before")["meminfo"].split()[1])
    assert read <= headroom.watches_default(total, watch) < 1.02 * read


def test_a_table_without_a_maximum_bounds_nothing() -> None:
    found = predict(False, tracking=True, **{"net.netfilter.nf_conntrack_max": "0"})
    assert "nf_conntrack_max" not in found.limits


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


def test_the_server_that_will_have_the_least_is_forecast() -> None:
    hosts = {
        "server1": record("6.1", "servers"),
        "server2": record("6.1", "servers"),
        "client1": record("6.1", "clients"),
    }
    inventory = lab(False)
    second = replace(inventory.hosts["server1"], name="server2", data_addresses=("198.18.0.2",))
    inventory = replace(inventory, hosts={**inventory.hosts, "server2": second})
    before = hosts["server2"].phases["before"].meminfo_kib
    wanted = Scenario(name="test", title="test", connections=1_001)
    for change, name in ((-50_000, "server2"), (100_000, "server1")):
        before["MemFree"] += change
        said = capacity.predict(Topology(wanted, inventory), hosts, {}, 10_000).forecast
        assert (said.host, said.connections) == (name, 501)


def test_nothing_is_forecast_of_a_server_that_told_no_memory() -> None:
    hosts = {"server1": record("6.1", "servers"), "client1": record("6.1", "clients")}
    hosts["server1"].phases["before"].meminfo_kib = {}
    wanted = Scenario(name="test", title="test")
    assert capacity.predict(Topology(wanted, lab(False)), hosts, {}, 5).forecast is None
    hosts["server1"].phases = {}
    assert capacity.predict(Topology(wanted, lab(False)), hosts, {}, 5).forecast is None


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
