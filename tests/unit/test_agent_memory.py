"""The estimate of free memory, on texts that real kernels printed."""

import re
import resource

import pytest
from captured import DATA, KERNELS

from bench.agent import memory

ZONEINFO = """\
Node 0, zone      DMA
  pages free     2816
        boost    0
        min      10
        low      13
        high     16
        spanned  4095
        present  3998
        managed  3840
        protection: (0, 3000, 24000, 24000)
Node 0, zone   Normal
  pages free     100000
        min      16000
        low      20000
        high     24000
        managed  6000000
        protection: (0, 0, 0, 0)
"""
PAGE_KIB = 4


def meminfo(kernel, phase):
    return (DATA / kernel / phase / "meminfo").read_text()


def test_reserves_are_the_kernels():
    kept = memory.reserves(ZONEINFO)
    # The DMA zone reserves all that it has: its protection is larger than itself.
    assert kept.total == (3840 + 24000) * PAGE_KIB
    assert kept.low == 20013 * PAGE_KIB


def test_reserves_of_this_machine():
    with open("/proc/zoneinfo") as file:
        kept = memory.reserves(file.read())
    assert 0 < kept.low < kept.total


@pytest.mark.parametrize("kernel", KERNELS)
def test_live_sockets_are_not_free_memory(kernel):
    kept = memory.Reserves(0, 0)
    before = memory.estimate(meminfo(kernel, "before"), "1000 0 9999", kept)
    peak = memory.estimate(meminfo(kernel, "peak"), "1000 0 9999", kept)
    blind = memory.estimate(meminfo(kernel, "peak"), "0 0 9999", kept)
    pinned = memory.estimate(meminfo(kernel, "peak"), "1000000000 0 9999", kept)
    assert before.free > 0 and peak.slab >= before.slab
    assert blind.free - peak.free == 1000 * memory.PINNED_BYTES // 1024
    found = memory.fields(meminfo(kernel, "peak"))
    pages = found["Active(file)"] + found["Inactive(file)"]
    assert pinned.free == found["MemFree"] + pages
    assert pinned.available == found["MemAvailable"]


def test_a_line_that_is_missing_is_not_guessed():
    text = re.sub(r"SReclaimable.*\n", "", meminfo(KERNELS[0], "before"))
    with pytest.raises(KeyError, match="SReclaimable"):
        memory.estimate(text, "0 0 0", memory.Reserves(0, 0))


def test_the_gauge_reads_this_machine():
    found = memory.Gauge().read()
    with open("/proc/meminfo") as file:
        total = memory.fields(file.read())["MemTotal"]
    assert 0 < found.free < total
    assert 0 < found.slab < total


def test_the_gauge_reads_anew_without_a_descriptor_to_spare():
    gauge = memory.Gauge()
    before = gauge.read()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limit[1]))
    try:
        eaten = bytearray(b"x") * (64 << 20)
        after = gauge.read()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        gauge.close()
    assert len(eaten) and before.free != after.free
