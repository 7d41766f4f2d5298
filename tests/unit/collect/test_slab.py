from __future__ import annotations

from datetime import UTC, datetime

import pytest
from captured import DATA, HELD, KERNELS, collected, texts

from bench.collect import slab
from bench.results import cost, facts
from bench.results.format import HostRecord, KernelBytes, Phase

NOW = datetime(2026, 1, 31, tzinfo=UTC)


def phases(kernel: str, **peak: object) -> dict[str, Phase]:
    return {
        "before": facts.phase(collected(kernel, "before"), NOW),
        "peak": facts.phase(collected(kernel, "peak", **peak), NOW),
    }


def host(phases: dict[str, Phase], *groups: str) -> HostRecord:
    return HostRecord(
        groups=list(groups), kernel="6.1", python="3.11", cpu=1, mem_total_kib=1, phases=phases
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_sizes_agree_with_sysfs(kernel: str) -> None:
    caches = slab.parse(texts(kernel, "peak")["slabinfo"])
    seen = 0
    for line in (DATA / kernel / "slab_names").read_text().splitlines():
        words = line.split()
        if len(words) == 3 and words[0] in caches:
            assert caches[words[0]].object_bytes == int(words[2])
            seen += 1
    assert seen >= 3


@pytest.mark.parametrize("kernel", KERNELS)
def test_sum_of_caches_is_what_meminfo_calls_slab(kernel: str) -> None:
    """SReclaimable + SUnreclaim also hold large kmallocs, so meminfo may say a little more."""
    found = texts(kernel, "peak")
    total = sum(cache.slab_bytes for cache in slab.parse(found["slabinfo"]).values())
    line = next(line for line in found["meminfo"].splitlines() if line.startswith("Slab:"))
    assert 0.95 < total / (int(line.split()[1]) * 1024) <= 1.01


def test_one_line_with_and_without_slabdata() -> None:
    line = "TCP   26  30  2368  13  8 : tunables 0 0 0"
    whole = slab.parse(f"slabinfo - version: 2.1\n{line} : slabdata 2 3 0\n")["TCP"]
    assert (whole.slabs, whole.slab_bytes) == (3, 3 * 8 * 4096)
    bare = slab.parse(line)["TCP"]
    assert (bare.slabs, bare.slab_bytes) == (3, 3 * 8 * 4096)
    assert slab.parse(line, 16384)["TCP"].slab_bytes == 3 * 8 * 16384
    assert whole.bytes_each == pytest.approx(8 * 4096 / 13)


def test_lines_of_one_name_add_up() -> None:
    text = "bio 10 16 256 16 1 : slabdata 1 1 0\nbio 5 12 320 12 2 : slabdata 1 1 0\n"
    found = slab.parse(text)["bio"]
    assert (found.active, found.objects, found.slab_bytes) == (15, 28, 3 * 4096)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("slabinfo - version: 1.1\n", "line 1.*only version 2.1"),
        ("slabinfo - version: 2.1\nTCP 1 2 3\n", "line 2.*not a slab cache"),
        ("TCP 1 2 3 0 5\n", "line 1.*no object fits"),
    ],
)
def test_malformed(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"slabinfo {reason}"):
        slab.parse(text)


def test_merged_caches_say_what_sockets_have_in_them() -> None:
    assert phases("6.1")["peak"].slab_shared == {
        "pid": "eventpoll_epi+tcp_bind_bucket",
        "anon_vma_chain": "eventpoll_pwq+tcp_bind2_bucket",
    }
    with pytest.raises(ValueError, match="slab_aliases line 1"):
        slab.parse_aliases("one two three\n")


@pytest.mark.parametrize(
    ("kernel", "low", "high"),
    [("5.10", 7_600, 7_800), ("6.1", 7_750, 7_950), ("6.18", 7_700, 8_500)],
)
def test_both_ends_on_a_shared_kernel(kernel: str, low: int, high: int) -> None:
    hosts = {
        "server1": host(phases(kernel), "servers"),
        "client1": host(phases(kernel, held=HELD[kernel] // 2), "clients"),
        "client2": host(phases(kernel, held=HELD[kernel] // 2), "clients"),
    }
    found = cost.kernel_bytes(hosts, shared_kernel=True)
    assert found.server is None and found.client is None
    assert found.both_ends is not None and low < found.both_ends < high
    assert sum(found.by_cache.values()) == pytest.approx(found.both_ends, abs=1.5)
    assert next(iter(found.by_cache)) == "TCP"
    large = [value for name, value in found.by_cache.items() if name != "other"]
    assert large == sorted(large, reverse=True)
    assert min(map(abs, large)) >= cost.SMALL


def test_what_was_held_before_is_no_growth() -> None:
    pair = phases("6.1")
    early = pair["before"].model_copy(update={"held": 5_000})
    late = pair["peak"].model_copy(update={"held": pair["peak"].held + 5_000})
    moved = {"server1": host({"before": early, "peak": late}, "servers")}
    usual = {"server1": host(pair, "servers")}
    assert cost.kernel_bytes(moved, True) == cost.kernel_bytes(usual, True)
    assert cost.userland_bytes(moved) == cost.userland_bytes(usual)


def test_servers_of_one_kernel_see_the_same_slab_once() -> None:
    pair = phases("6.1", held=HELD["6.1"] // 2)
    whole = {"server1": host(phases("6.1"), "servers")}
    halves = {name: host(pair, "servers") for name in ("server1", "server2")}
    one, two = (cost.kernel_bytes(each, shared_kernel=True) for each in (whole, halves))
    assert two.both_ends == pytest.approx(one.both_ends)
    assert two.by_cache == one.by_cache


@pytest.mark.parametrize(
    ("sockets", "both_ends", "disturbed"),
    [
        (2.0, 7_800.0, False),
        (1.8, 7_800.0, False),  # one in ten just so
        (1.79, 7_800.0, True),
        (2.21, 7_800.0, True),
        (1.0, 7_800.0, True),
        (1.0, None, False),
        (1.11, None, True),
        (None, None, False),
    ],
)
def test_more_than_one_socket_in_ten_is_a_disturbance(
    sockets: float | None, both_ends: float | None, disturbed: bool
) -> None:
    found = KernelBytes(sockets=sockets, both_ends=both_ends, server=3_900.0)
    assert cost.disturbed(found) is disturbed


def test_separate_kernels_are_added_up_per_side() -> None:
    pair = phases("6.1")
    hosts = {
        "server1": host(pair, "servers"),
        "server2": host(pair, "servers"),
        "client1": host(pair, "clients"),
    }
    found = cost.kernel_bytes(hosts, shared_kernel=False)
    one = cost.kernel_bytes({"server1": hosts["server1"]}, shared_kernel=False)
    assert found.both_ends is None
    assert found.server == pytest.approx(one.server) == found.client
    assert one.client is None


def test_looking_at_proc_is_not_a_cost() -> None:
    """5,000 /proc inodes with their dentries and blobs leave the figure where it was."""
    pair = phases("6.1")
    peak = pair["peak"].model_copy(deep=True)
    for cache, each in (("proc_inode_cache", 712), ("dentry", 192), ("lsm_inode_cache", 32)):
        peak.slab_objects[cache] += 5_000
        peak.slab_bytes[cache] += 5_000 * each
    looked = {"before": pair["before"], "peak": peak}
    quiet = cost.kernel_bytes({"s": host(pair, "servers")}, True)
    noisy = cost.kernel_bytes({"s": host(looked, "servers")}, True)
    assert quiet.both_ends is not None
    assert noisy.both_ends == pytest.approx(quiet.both_ends, abs=8)
    assert noisy.observer_bytes == pytest.approx(quiet.observer_bytes + 5_000 * 936 / 20_000, abs=8)


def test_shrinking_caches_count_negative() -> None:
    before = Phase(taken=NOW, held=0, slab_bytes={"TCP": 4096, "kmalloc-64": 81_920})
    peak = Phase(taken=NOW, held=10, slab_bytes={"TCP": 45_056})
    found = cost.kernel_bytes({"s": host({"before": before, "peak": peak}, "servers")}, True)
    assert found.both_ends == -4096.0
    assert found.by_cache == {"TCP": 4096.0, "kmalloc-64": -8192.0}


def test_sockets_of_others_are_noticed() -> None:
    pair = phases("6.1")
    quiet = cost.kernel_bytes({"s": host(pair, "servers")}, True)
    assert quiet.sockets == pytest.approx(2, abs=0.01)
    assert not cost.disturbed(quiet)
    peak = pair["peak"].model_copy(deep=True)
    peak.slab_objects["TCP"] += 5_000
    others = {"before": pair["before"], "peak": peak}
    assert cost.disturbed(cost.kernel_bytes({"s": host(others, "servers")}, True))
    # A kernel of the server's own holds one end: here it held both, which does not go unseen.
    assert cost.disturbed(cost.kernel_bytes({"s": host(pair, "servers")}, False))
    assert not cost.disturbed(cost.kernel_bytes({}, True))


def test_small_caches_go_into_other() -> None:
    assert cost.by_cache({"TCP": 2000, "a": 60, "b": 30, "c": -50}, 100) == {
        "TCP": 20.0,
        "other": 0.4,
    }


def test_without_slabinfo_meminfo_stands_alone() -> None:
    pair = phases("6.1")
    bare = {
        name: phase.model_copy(update={"slab_bytes": {}, "slab_objects": {}})
        for name, phase in pair.items()
    }
    found = cost.kernel_bytes({"s": host(bare, "servers")}, False)
    whole = cost.kernel_bytes({"s": host(pair, "servers")}, False)
    assert list(found.by_cache) == ["Slab"]
    assert found.server == pytest.approx(whole.server, rel=0.03)


def test_nothing_held_gives_no_figure() -> None:
    pair = phases("6.1", held=0)
    assert cost.kernel_bytes({"s": host(pair, "servers")}, True).both_ends is None
    assert cost.kernel_bytes({}, True).both_ends is None
    assert cost.userland_bytes({"s": host(pair, "servers")}).server is None


def test_userland_is_the_growth_of_pss() -> None:
    found = cost.userland_bytes({"s": host(phases("6.1"), "servers")})
    assert found.server == pytest.approx(400 * 1024 / 20_000, abs=0.1)
    assert found.client is None


@pytest.mark.parametrize("kernel", KERNELS)
def test_after_gives_back_what_peak_took(kernel: str) -> None:
    before, after = (facts.phase(collected(kernel, p), NOW) for p in ("before", "after"))
    deltas, _ = cost.growth(before, after)
    assert abs(sum(deltas.values())) < 100 * HELD[kernel]
