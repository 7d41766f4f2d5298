"""How much memory is really left, without root.

MemAvailable counts all reclaimable slab as free, and the kernel files the inodes and dentries of
live sockets under it: about 1.1 KB per socket that no reclaim can give back. So the floor is
judged on an estimate of its own::

    MemFree + file pages + (SReclaimable - open files x PINNED_BYTES) - reserves

File pages are ``Active(file) + Inactive(file)``; like ``si_mem_available()`` (mm/show_mem.c) the
estimate leaves half of them, at most the low watermark, in place, and subtracts the kernel's
reserves (``totalreserve_pages``: per zone the high watermark and the largest lowmem_reserve,
mm/page_alloc.c ``calculate_totalreserve_pages()``). Open files are those of the whole kernel
(``/proc/sys/fs/file-nr``): what a neighbour's sockets pin is no more free than what ours do.
"""

from __future__ import annotations

import os
import re
from typing import Dict, List, NamedTuple

PINNED_BYTES = 1100
"""Reclaimable-type slab that a live socket pins: sock_inode_cache 832 + dentry 192 B
(``/proc/slabinfo`` on Linux 6.1 and 6.18) and 7 % for the slabs' own rounding."""

_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


class Reserves(NamedTuple):
    """What the kernel keeps for itself, KiB."""

    total: int
    low: int


class Memory(NamedTuple):
    """One look at the machine's memory, KiB."""

    available: int
    free: int
    slab: int


def fields(meminfo: str) -> Dict[str, int]:
    """``/proc/meminfo`` as a name to KiB table."""
    pairs = (line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    return {name: int(rest.split()[0]) for name, rest in pairs}


def reserves(zoneinfo: str) -> Reserves:
    """The kernel's reserves from the text of ``/proc/zoneinfo``."""
    total = low = 0
    for zone in re.split(r"^Node ", zoneinfo, flags=re.MULTILINE)[1:]:
        marks = dict(re.findall(r"^ +(low|high|managed) +(\d+)$", zone, flags=re.MULTILINE))
        protection = re.search(r"^ +protection: \(([^)]*)\)", zone, flags=re.MULTILINE)
        largest = max(map(int, protection.group(1).split(","))) if protection else 0
        managed = int(marks.get("managed", 0))
        total += min(managed, int(marks.get("high", 0)) + largest)
        low += int(marks.get("low", 0))
    return Reserves(total * _PAGE_KIB, low * _PAGE_KIB)


def estimate(meminfo: str, file_nr: str, kept: Reserves) -> Memory:
    """Memory from the texts of ``/proc/meminfo`` and ``/proc/sys/fs/file-nr``.

    :raises KeyError: if meminfo lacks a line that every kernel since 3.14 prints.
    """
    found = fields(meminfo)
    pages = found["Active(file)"] + found["Inactive(file)"]
    pages -= min(pages // 2, kept.low)
    pinned = int(file_nr.split(maxsplit=1)[0]) * PINNED_BYTES // 1024
    slab = max(0, found["SReclaimable"] - pinned)
    free = max(0, found["MemFree"] - kept.total) + pages + slab
    return Memory(found["MemAvailable"], free, found["Slab"])


class Gauge:
    """Reads the machine's memory; cheap enough (some 50 µs) to be asked 20 times a second.

    The files stay open: at ``fs.file-max`` nobody could open them again.
    """

    def __init__(self) -> None:
        with open("/proc/zoneinfo", encoding="ascii") as file:
            self._kept = reserves(file.read())
        self._meminfo, self._files = (
            os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            for path in ("/proc/meminfo", "/proc/sys/fs/file-nr")
        )

    def read(self) -> Memory:
        """Memory now."""
        return estimate(_again(self._meminfo), _again(self._files), self._kept)

    def close(self) -> None:
        """Let the files go; there is no reading after it."""
        os.close(self._meminfo)
        os.close(self._files)


def _again(fd: int) -> str:
    """The text of a file of /proc as it is now: from its start it is made anew (proc(5))."""
    parts: List[bytes] = []
    at = 0
    while True:
        part = os.pread(fd, 1 << 16, at)
        if not part:
            return b"".join(parts).decode("ascii")
        parts.append(part)
        at += len(part)
