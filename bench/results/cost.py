"""The cost of one connection: growth between two phases, divided by the connections held.

Slab caches that no socket allocates from are counted separately, as *observers*: they grow because
a program walked ``/proc`` or because files were read and written meanwhile. Each of their inodes
brings a dentry and, with a security module that keeps one, an ``lsm_inode_cache`` blob. So the same
number of dentries and blobs is not counted as the connections' cost either.

======================== ========================================================================
observer                 why it is not part of a connection's cost
======================== ========================================================================
proc_inode_cache         fs/proc/inode.c: an inode per visited /proc entry, such as one per
                         descriptor when a program lists /proc/<pid>/fd
inode_cache, shmem_,     fs/inode.c (sysfs, pipes, anonymous files), mm/shmem.c, fs/debugfs,
debugfs_, tracefs_, …    fs/tracefs
ext4_inode_cache,        file systems' inodes: logs, results, programs read meanwhile
xfs_inode, ovl_inode, …
radix_tree_node          lib/xarray.c: maps of file contents in the page cache
buffer_head,             fs/buffer.c, fs/ext4/extents_status.c, fs/mbcache.c
extent_status, mb_cache
kmalloc-rcl-*            mm/slab_common.c, reclaimable: names of dentries too long for the dentry
======================== ========================================================================

The list has only caches that SLUB never merges with a connection's own caches, because they have a
constructor or are reclaimable. ``kernfs_node_cache``, for example, is not on the list: it shares
its slabs with ``tcp_bind_bucket`` on Linux 5.10.

Sockets take their inodes from sock_inode_cache (net/socket.c), which is never an observer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bench.results.format import HostRecord, KernelBytes, Phase, UserlandBytes

SMALL = 1.0
"""Bytes per connection below which a cache is counted in ``other``."""

_INODES = re.compile(
    r"proc_inode_cache|shmem_inode_cache|inode_cache|(debugfs|tracefs|hugetlbfs|mqueue)_inode_cache"
    r"|ext4_inode_cache|ovl_inode|btrfs_inode|xfs_inode|fuse_inode|squashfs_inode_cache"
    r"|erofs_inode|isofs_inode_cache|fat_inode_cache|nfs_inode_cache"
)
_RECORDS = re.compile(
    r"radix_tree_node|buffer_head|extent_status|mb_cache_entry|kmalloc-rcl-[0-9]+k?"
)
_PER_INODE = ("dentry", "lsm_inode_cache")

Growth = dict[str, float]


def observes(cache: str) -> bool:
    """Return whether a slab cache holds only what observers and file access leave behind."""
    return bool(_INODES.fullmatch(cache) or _RECORDS.fullmatch(cache))


def known(before: Phase, peak: Phase) -> bool:
    """Return whether both phases have slab figures of the same kind: by cache, or as a sum."""
    summed = "Slab" in before.meminfo_kib and "Slab" in peak.meminfo_kib
    return summed or _listed(before, peak)


def _listed(before: Phase, peak: Phase) -> bool:
    return bool(before.slab_bytes and peak.slab_bytes)


def growth(before: Phase, peak: Phase) -> tuple[Growth, float]:
    """Return the signed growth in bytes by slab cache without observers, and the observers' growth.

    A cache that shrank counts as negative: without it, noise would look like cost. If slabinfo
    could not be read (only root may), the result is the growth of meminfo's ``Slab``. One of the
    two sources has to be in both phases (:func:`known`).
    """
    if not _listed(before, peak):
        return {"Slab": 1024.0 * (peak.meminfo_kib["Slab"] - before.meminfo_kib["Slab"])}, 0.0
    deltas = {
        name: float(peak.slab_bytes.get(name, 0) - before.slab_bytes.get(name, 0))
        for name in before.slab_bytes.keys() | peak.slab_bytes.keys()
    }
    objects = {
        name: peak.slab_objects.get(name, 0) - before.slab_objects.get(name, 0) for name in deltas
    }
    inodes = sum(max(0, objects[name]) for name in deltas if _INODES.fullmatch(name))
    observers = sum(deltas.pop(name) for name in list(deltas) if observes(name))
    for name in _PER_INODE:
        if deltas.get(name, 0) > 0 and objects[name] > 0:
            theirs = deltas[name] * min(inodes, objects[name]) / objects[name]
            deltas[name] -= theirs
            observers += theirs
    return {name: delta for name, delta in deltas.items() if delta}, observers


def by_cache(
    deltas: Mapping[str, float], connections: int, shared: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Return bytes per connection by cache, largest first, caches below :data:`SMALL` as ``other``.

    :param shared: for a cache that merged under another name, the sockets' caches in it
        (:attr:`bench.results.format.Phase.slab_shared`)
    """
    label = shared or {}
    each = {label.get(name, name): delta / connections for name, delta in deltas.items()}
    large = sorted((n for n in each if abs(each[n]) >= SMALL), key=lambda n: (-each[n], n))
    found = {name: round(each[name], 1) for name in large}
    other = sum(value for name, value in each.items() if name not in found)
    if abs(other) >= 0.05:
        found["other"] = round(other, 1)
    return found


def kernel_bytes(hosts: Mapping[str, HostRecord], shared_kernel: bool) -> KernelBytes:
    """Return the kernel memory per connection, from the phases ``before`` and ``peak``.

    :param shared_kernel: whether all hosts run on one kernel. Every host's slabinfo then shows the
        same caches, which are counted once and hold both ends of each connection.
    :return: a figure is None if no host has both phases or no connection was held
    """
    if not shared_kernel:
        made = _cost(_pairs(hosts, "servers"))
        client = _cost(_pairs(hosts, "clients")).both_ends
        return made.model_copy(
            update={"server": made.both_ends, "client": client, "both_ends": None}
        )
    servers, clients = _pairs(hosts, "servers"), _pairs(hosts, "clients")
    held = max(_held(servers), _held(clients))
    return _cost((servers or clients)[:1], held)


def userland_bytes(hosts: Mapping[str, HostRecord]) -> UserlandBytes:
    """Return the growth of the agents' PSS per held connection, in bytes, by side."""

    def side(group: str) -> float | None:
        pairs = _pairs(hosts, group)
        held = _held(pairs)
        grown = sum(peak.pss_kib - before.pss_kib for before, peak in pairs)
        return round(grown * 1024 / held, 1) if held > 0 else None

    return UserlandBytes(server=side("servers"), client=side("clients"))


Pair = tuple[Phase, Phase]


def _pairs(hosts: Mapping[str, HostRecord], group: str) -> list[Pair]:
    """Return (before, peak) of every host of a group that has both phases."""
    return [
        (host.phases["before"], host.phases["peak"])
        for _, host in sorted(hosts.items())
        if group in host.groups and "before" in host.phases and "peak" in host.phases
    ]


def _held(pairs: list[Pair]) -> int:
    """Return how many more connections these hosts hold at the peak than before."""
    return sum(peak.held - before.held for before, peak in pairs)


def _cost(pairs: list[Pair], held: int | None = None) -> KernelBytes:
    """Return the growth of these hosts' kernels per connection, as ``both_ends``.

    :param held: connections; by default those of the pairs
    """
    told = [pair for pair in pairs if known(*pair)]
    connections = _held(told) if held is None else held
    if not told or connections <= 0:
        return KernelBytes()
    total: Growth = {}
    observers = sockets = 0.0
    for before, peak in told:
        deltas, theirs = growth(before, peak)
        observers += theirs
        for name, delta in deltas.items():
            total[name] = total.get(name, 0.0) + delta
        for name in ("TCP", "TCPv6"):
            sockets += peak.slab_objects.get(name, 0) - before.slab_objects.get(name, 0)
    counted = all(phase.slab_objects for pair in told for phase in pair)
    return KernelBytes(
        both_ends=round(sum(total.values()) / connections, 1),
        by_cache=by_cache(total, connections, told[0][1].slab_shared),
        observer_bytes=round(observers / connections, 1),
        sockets=round(sockets / connections, 2) if counted else None,
    )


def disturbed(found: KernelBytes) -> bool:
    """Return whether other programs opened or closed sockets during the run: over one in ten."""
    expected = 2 if found.both_ends is not None else 1
    return found.sockets is not None and abs(found.sockets - expected) > 0.1 * expected
