"""Keeps the free memory of the hosts backed while contestants are timed.

A virtual machine may return its free pages to its host (free page reporting, the balloon). The next
touch of such a page is a fault in the host, about ten times as expensive as one within the guest. A
ramp that reaches such memory slows down for a reason that is neither TCP's nor the contestant's. So
a program holds nearly all free memory of every kernel. It frees it piece by piece just before the
kernel needs it, and takes it again after the drain.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from bench.errors import LabError
from bench.hosts.session import Connect
from bench.hosts.transport import Link
from bench.inventory import Host

LOW_KIB, HIGH_KIB, PIECE_KIB = 1500 << 10, 2000 << 10, 64 << 10
"""Bounds for MemFree, and the size of a piece. A ramp takes about 0.6 GB/s, and the holder looks a
hundred times a second; the watermarks of a 24 GiB machine end at 0.27 GB."""

FILL_SECONDS = 300.0
"""Time limit for the filling. Touching 24 GiB that the host had to find first took 60 s."""

# 14 and 23: MADV_HUGEPAGE and MADV_POPULATE_WRITE (asm-generic/mman-common.h). A kernel before 5.14
# does not know the latter; then each page is written to. The kernel kills the holder first when
# memory runs out (proc_pid_oom_score_adj(5)), and the holder ends with its standard input.
_HOLDER = """
import mmap, select, sys
low, high, piece = (int(word) for word in sys.argv[1:])
with open("/proc/self/oom_score_adj", "w") as score:
    score.write("1000")
held, meminfo = [], open("/proc/meminfo", "rb", buffering=0)
def touched():
    area = mmap.mmap(-1, piece * 1024, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        area.madvise(14)
        area.madvise(23)
    except OSError:
        for at in range(0, len(area), mmap.PAGESIZE):
            area[at] = 1
    return area
patience = 0.0
while not select.select([0], [], [], patience)[0]:
    meminfo.seek(0)
    free = int(meminfo.read(256).split(b"MemFree:")[1].split()[0])
    patience = 0.0
    if free < low and held:
        held.pop().close()
    elif free > high + piece:
        held.append(touched())
    else:
        patience = 0.01
"""


class Reserve:
    """The holders on all kernels of a lab."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = links

    def wait_until_filled(self) -> None:
        """Wait until free memory is down to what the holders leave.

        :raises LabError: if that takes too long.
        """
        ends = time.monotonic() + FILL_SECONDS
        for link in self._links:
            while _free_kib(link) > HIGH_KIB + PIECE_KIB:
                if time.monotonic() > ends:
                    raise LabError(f"free memory was not touched within {FILL_SECONDS:.0f} s")
                time.sleep(0.2)


def _free_kib(link: Link) -> int:
    return int(link.run(["cat", "/proc/meminfo"]).split("MemFree:")[1].split()[0])


@contextlib.contextmanager
def reserve(connect: Connect, hosts: Sequence[Host]) -> Iterator[Reserve]:
    """Hold the free memory of every kernel under the hosts; free all of it at the end."""
    with contextlib.ExitStack() as stack:
        kernels: dict[str, Link] = {}
        for host in hosts:
            link = stack.enter_context(contextlib.closing(connect(host)))
            kernels.setdefault(link.run(["cat", "/proc/sys/kernel/random/boot_id"]), link)
        for link in kernels.values():
            words = [str(size) for size in (LOW_KIB, HIGH_KIB, PIECE_KIB)]
            stack.callback(link.start(["python3", "-c", _HOLDER, *words]).close)
        yield Reserve(list(kernels.values()))
