"""Verdicts on what connections take of memory, and the server's end told from the client's."""

from __future__ import annotations

import pytest
import runs

from bench.claims import slabs
from bench.claims.article import CONNECTIONS, MEM_TOTAL_KIB
from bench.claims.lab import NotMeasurable
from bench.claims.statements.memavailable import MemAvailableFound, judge_memavailable
from bench.claims.statements.million import CLAIM, MillionFound, _as_said, judge_million
from bench.claims.statements.modern_cost import ModernCostFound, judge_modern_cost

FULL = MillionFound(
    extrapolated=False,
    kernel="6.1",
    mem_total_kib=MEM_TOTAL_KIB,
    held=1_000_024,
    bound_by="none",
    each=3_400,
    by_cache={"TCP": 2_340.0},
    split="a kernel of its own",
    disturbed=False,
    slab_kib=3_300_000,
    mem_free_kib=95_000,
    mem_available_kib=1_130_000,
    used_before_kib=150_000,
)
SMALL = FULL.model_copy(
    update={"extrapolated": True, "held": 20_000, "mem_free_kib": None, "mem_available_kib": None}
)

LARGER = {"mem_total_kib": 24_684_092, "used_before_kib": 2_000_000}


@pytest.mark.parametrize(
    ("found", "changes", "verdict"),
    [
        (FULL, {}, "confirmed"),
        (FULL, {"slab_kib": 3_701_980}, "depends"),
        (FULL, {"mem_free_kib": 40_000}, "depends"),
        (FULL, {"mem_free_kib": 210_000}, "depends"),
        (FULL, {"mem_free_kib": 60_000}, "confirmed"),
        (FULL, {"held": 500_000}, "inconclusive"),
        (FULL, {"held": CONNECTIONS}, "confirmed"),
        (FULL, {"held": CONNECTIONS - 1}, "inconclusive"),
        (FULL, {"held": 946_951, "bound_by": "memory"}, "refuted"),
        (FULL, {"disturbed": True}, "inconclusive"),
        (SMALL, {}, "confirmed"),
        (SMALL, {"slab_kib": 3_657_119}, "depends"),
        (SMALL, {"slab_kib": 4_000_000}, "refuted"),
        (SMALL, {"slab_kib": 3_900_000, "used_before_kib": None}, "refuted"),  # 100 MB free as well
        (SMALL, {"slab_kib": 3_657_119, "used_before_kib": 200_000}, "refuted"),
        (SMALL, {"slab_kib": 3_657_119, **LARGER}, "depends"),
        (SMALL, {"slab_kib": 3_900_000, **LARGER}, "refuted"),
    ],
)
def test_a_million_is_judged_by_what_was_held_or_would_fit(found, changes, verdict) -> None:
    told = judge_million(found.model_copy(update=changes))
    assert told.verdict == verdict
    assert ("extrapolated" in told.measured) is found.extrapolated


def test_slab_and_free_memory_are_told_in_bytes() -> None:
    told = judge_million(FULL.model_copy(update={"slab_kib": 3_300_000, "mem_free_kib": 95_000}))
    assert told.measured.startswith("1,000,024 ESTAB, 3.38 GB of slab, 97 MB free, 3.32 KiB per")


def test_what_a_larger_host_uses_is_not_reckoned_and_that_is_said() -> None:
    words = "what such a host has in use besides is not reckoned"
    assert words not in judge_million(SMALL).reason
    assert words in judge_million(SMALL.model_copy(update=LARGER)).reason


def test_a_million_is_held_on_such_a_host_alone() -> None:
    _as_said(False, MEM_TOTAL_KIB)
    _as_said(False, int(MEM_TOTAL_KIB * 0.96))
    for shared, memory in ((True, MEM_TOTAL_KIB), (False, 1_500_000), (False, 24_684_092)):
        with pytest.raises(NotMeasurable, match="one kernel" if shared else "3.9 GB"):
            _as_said(shared, memory)


def test_the_full_run_goes_to_a_floor_of_its_own() -> None:
    assert CLAIM.connections(CLAIM.full) == 0
    assert CLAIM.connections(CLAIM.small) == CLAIM.small.connections


AVAILABLE = MemAvailableFound(
    sockets=2_000_000,
    reclaimable=1_060,
    inodes=1.0,
    disturbed=False,
    available_fall=2_850,
    free_fall=3_900,
    promised=1_050,
    counted=1_060,
    mem_available_kib=10_000_000,
    mem_free_kib=7_000_000,
    page_cache_kib=1_000_000,
)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "confirmed"),
        ({"sockets": 40_000, "promised": 3_000}, "confirmed"),
        ({"promised": 3_000}, "inconclusive"),
        ({"promised": 1_700, "counted": 1_720}, "confirmed"),  # observers' inodes are in both
        ({"disturbed": True}, "inconclusive"),
        ({"reclaimable": 10, "promised": 10, "counted": 10}, "refuted"),
        ({"reclaimable": 700, "promised": 700, "counted": 700}, "depends"),
        ({"inodes": 0.0}, "depends"),
    ],
)
def test_what_is_promised_is_judged_by_the_slab(changes, verdict) -> None:
    assert judge_memavailable(AVAILABLE.model_copy(update=changes)).verdict == verdict


def test_few_sockets_are_told_of() -> None:
    few = judge_memavailable(AVAILABLE.model_copy(update={"sockets": 40_000}))
    assert "so few sockets" in few.reason
    assert "so few sockets" not in judge_memavailable(AVAILABLE).reason


COST = ModernCostFound(
    connections=20_000,
    each={"6.18.44": 3_755.5},
    by_cache={"TCP": 2_505.9, "lsm_inode_cache": 21.5, "lsm_file_cache": 20.5},
    said=3_319.0,
    split="a kernel of its own",
    disturbed=False,
)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "confirmed"),
        ({"each": {"6.1": 3_755.5, "7.0": 5_000}}, "depends"),
        ({"each": {"4.19": 3_300}}, "refuted"),
        ({"each": {}}, "inconclusive"),
        ({"disturbed": True}, "inconclusive"),
    ],
)
def test_the_cost_is_judged_on_each_kernel(changes, verdict) -> None:
    assert judge_modern_cost(COST.model_copy(update=changes)).verdict == verdict


def test_of_a_shared_kernel_an_end_is_told_by_its_objects() -> None:
    run = runs.million()
    both = run.measured.kernel_bytes_per_connection.by_cache
    found = slabs.of_servers(run, shared_kernel=True)
    assert next(iter(found.by_cache)) == "TCP"
    for name in ("TCP", "sock_inode_cache", "dentry", "filp"):
        assert found.by_cache[name] == pytest.approx(both[name] / 2, rel=0.05)
    assert set(found.by_cache) <= slabs.ALIKE and "tcp_bind_bucket" not in found.by_cache
    assert found.each == pytest.approx(sum(found.by_cache.values()), abs=0.5)
    assert found.by_kernel == {"6.18.44": found.each}


def test_of_kernels_apart_the_servers_own_figures_are_taken() -> None:
    run = runs.stopped()
    found = slabs.of_servers(run, shared_kernel=False)
    assert found.each == run.measured.kernel_bytes_per_connection.server
    assert found.by_kernel == {"6.1.0-56-cloud-amd64": found.each}


def test_without_slab_caches_nothing_is_told() -> None:
    with pytest.raises(NotMeasurable, match="slab caches could not be read"):
        slabs.of_servers(runs.aborted(), shared_kernel=True)


def test_what_others_left_and_took_is_no_part_of_a_socket() -> None:
    phases = runs.million().hosts["server1"].phases
    before, peak = phases["before"], phases["peak"]
    usual = slabs.per_socket(before, peak)
    assert slabs.sockets(before, peak) > 0 == slabs.sockets(peak, before)
    assert slabs.per_socket(peak, before) == {}
    # Slabs had room for the dentries: they did not grow, and none the less they hold them.
    roomy = before.model_copy(
        update={"slab_bytes": {**before.slab_bytes, "dentry": peak.slab_bytes["dentry"]}}
    )
    assert slabs.per_socket(roomy, peak) == usual
    # Something else took as many dentries again.
    more = slabs.gained("dentry", before, peak)
    double = peak.model_copy(
        update={
            "slab_objects": {**peak.slab_objects, "dentry": peak.slab_objects["dentry"] + more},
            "slab_bytes": {
                **peak.slab_bytes,
                "dentry": peak.slab_bytes["dentry"] + 4096 * more // 21,
            },
        }
    )
    assert slabs.per_socket(before, double)["dentry"] == pytest.approx(usual["dentry"], rel=0.1)
