"""How much memory is really free, measured without root.

MemAvailable counts all reclaimable slab as free. But the kernel counts the inodes and dentries of
live sockets as reclaimable slab: about 1.1 KB per socket that no reclaim can free. So the floor is
compared with a separate estimate::

    MemFree + file pages + (SReclaimable - open files x PINNED_BYTES) - reserves

File pages are ``Active(file) + Inactive(file)``. Like ``si_mem_available()`` (mm/show_mem.c), the
estimate leaves half of them, at most the low watermark, in place. It also subtracts the kernel's
reserves (``totalreserve_pages``: per zone the high watermark and the largest lowmem_reserve,
mm/page_alloc.c ``calculate_totalreserve_pages()``). Open files are those of the whole kernel
(``/proc/sys/fs/file-nr``): memory that a neighbour's sockets pin is no more free than memory that
ours pin.
"""

from __future__ import annotations

import os
import re
from typing import Dict, List, NamedTuple

PINNED_BYTES = 1100
"""Slab of the reclaimable type that a live socket pins: sock_inode_cache 832 + dentry 192 B
(``/proc/slabinfo`` on Linux 6.1 and 6.18), and 7 % for the slabs' own rounding."""

_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


class Reserves(NamedTuple):
    """The kernel's own reserves, KiB."""

    total: int
    low: int


class Memory(NamedTuple):
    """A measurement of the machine's memory, KiB."""

    available: int
    free: int
    slab: int


def fields(meminfo: str) -> Dict[str, int]:
    """Return ``/proc/meminfo`` as a table of name to KiB."""
    pairs = (line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    return {name: int(rest.split()[0]) for name, rest in pairs}


def reserves(zoneinfo: str) -> Reserves:
    """Return the kernel's reserves, from the text of ``/proc/zoneinfo``."""
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
    """Return the memory, from the texts of ``/proc/meminfo`` and ``/proc/sys/fs/file-nr``.

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
    """A gauge of the machine's memory, cheap enough (some 50 µs) to be read 20 times a second.

    The files stay open: at ``fs.file-max`` an agent could not open them again.
    """

    def __init__(self) -> None:
        with open("/proc/zoneinfo", encoding="ascii") as file:
            self._kept = reserves(file.read())
        self._meminfo, self._files = (
            os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            for path in ("/proc/meminfo", "/proc/sys/fs/file-nr")
        )

    def read(self) -> Memory:
        """Return the memory as it is now."""
        return estimate(_again(self._meminfo), _again(self._files), self._kept)

    def close(self) -> None:
        """Close the files; the gauge cannot be read after that."""
        os.close(self._meminfo)
        os.close(self._files)


def _again(fd: int) -> str:
    """Return the text of a /proc file now: a read from its start renders it anew (proc(5))."""
    parts: List[bytes] = []
    at = 0
    while True:
        part = os.pread(fd, 1 << 16, at)
        if not part:
            return b"".join(parts).decode("ascii")
        parts.append(part)
        at += len(part)
