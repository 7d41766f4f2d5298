"""The estimate of free memory, on texts that real kernels printed."""

import os
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


def test_the_gauge_reads_anew_without_a_descriptor_to_spare(tmp_path):
    gauge = memory.Gauge()
    text = meminfo(KERNELS[0], "before")
    number = os.open(tmp_path / "meminfo", os.O_RDWR | os.O_CREAT)
    os.dup2(number, gauge._meminfo)  # this machine's own memory moves by itself
    os.write(number, text.encode())
    before = gauge.read()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limit[1]))
    try:
        less = re.sub(r"(MemFree: +)([0-9]+)", lambda row: row[1] + str(int(row[2]) - 65_536), text)
        os.pwrite(number, less.ljust(len(text)).encode(), 0)
        after = gauge.read()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        gauge.close()
        os.close(number)
    assert before.free - after.free == pytest.approx(65_536, abs=1024)  # files are opened meanwhile
    assert (before.available, before.slab) == (after.available, after.slab)


def test_the_estimate_is_that_of_the_kernel_less_what_sockets_pin():
    text = (
        "MemFree: 1000000 kB\nMemAvailable: 1 kB\nActive(file): 60000 kB\n"
        "Inactive(file): 40000 kB\nSReclaimable: 90000 kB\nSlab: 7 kB\n"
    )

    def free(files, total, low):
        return memory.estimate(text, f"{files} 0 9", memory.Reserves(total, low)).free

    assert free(0, 0, 0) == 1_000_000 + 100_000 + 90_000
    assert free(0, 300_000, 0) == 700_000 + 100_000 + 90_000
    # The low watermark of file pages stays, half of them at the most.
    assert free(0, 0, 30_000) == 1_000_000 + 70_000 + 90_000
    assert free(0, 0, 70_000) == 1_000_000 + 50_000 + 90_000
    assert free(10_240, 0, 0) == 1_000_000 + 100_000 + 90_000 - 11_000
    assert free(10_000_000, 2_000_000, 0) == 100_000


@pytest.mark.parametrize(("protection", "kept"), [("(0, 500, 300)", 516), ("(0, 9000)", 3840)])
def test_the_largest_protection_of_a_zone_counts_up_to_all_it_has(protection, kept):
    text = re.sub(r"protection: \(0, 3000, .*", f"protection: {protection}", ZONEINFO)
    assert memory.reserves(text).total == (kept + 24_000) * PAGE_KIB
