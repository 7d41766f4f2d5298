"""The server's end of a connection, told from the client's: slab bytes by cache."""

from __future__ import annotations

from dataclasses import dataclass

from bench.claims.model import NotMeasurable
from bench.collect import cost, objects
from bench.results import Phase, Run

ALIKE = frozenset(objects.parts(server=True)) | {"TCPv6"}
"""Caches of which both ends of a connection take the same: one object each."""


@dataclass(frozen=True)
class Ends:
    """What the servers' ends of a run's connections took of their kernels."""

    each: float
    """Bytes per connection."""
    by_cache: dict[str, float]
    by_kernel: dict[str, float]
    """Kernel release to bytes per connection."""
    split: str
    """How the server's end was told from the client's."""
    disturbed: bool
    """Whether sockets that are not the run's came or went."""


def of_servers(run: Run, shared_kernel: bool) -> Ends:
    """The servers' ends of a run that nothing watched.

    On a shared kernel the figures cover both ends. Half of each cache of which both take one object
    is the server's; all else is the client's, which alone has port buckets
    (net/ipv4/inet_hashtables.c: an accepted socket shares its listener's).

    :raises NotMeasurable: if the servers' slab caches were not read.
    """
    found = run.measured.kernel_bytes_per_connection
    if not {"TCP", "TCPv6"} & set(found.by_cache):
        raise NotMeasurable("the servers' slab caches could not be read: only root may")
    disturbed = cost.disturbed(found)
    servers = {name: host for name, host in run.hosts.items() if "servers" in host.groups}
    releases = sorted({host.kernel for host in servers.values()})
    if shared_kernel:
        halves = {name: each / 2 for name, each in found.by_cache.items() if name in ALIKE}
        each = round(sum(halves.values()), 1)
        return Ends(
            each,
            {name: round(half, 1) for name, half in halves.items()},
            dict.fromkeys(releases, each),
            "both ends on one kernel: half of what both have alike",
            disturbed,
        )
    by_kernel = {}
    for release in releases:
        same = {name: host for name, host in servers.items() if host.kernel == release}
        by_kernel[release] = cost.kernel_bytes(same, shared_kernel=False).server or 0.0
    return Ends(
        found.server or 0.0,
        dict(found.by_cache),
        by_kernel,
        "a kernel of its own",
        disturbed,
    )


def reclaimable(before: Phase, peak: Phase) -> tuple[float, float, int]:
    """Bytes per socket that the kernel gained in caches that count as reclaimable, inodes per
    socket, and sockets gained; zeros if slabinfo was not read.

    Without what observers left there (:mod:`bench.collect.cost`).
    """

    def gained(*names: str) -> int:
        return sum(
            peak.slab_objects.get(name, 0) - before.slab_objects.get(name, 0) for name in names
        )

    sockets = gained("TCP", "TCPv6")
    if sockets <= 0:
        return 0.0, 0.0, 0
    deltas, _ = cost.growth(before, peak)
    grown = sum(deltas.get(name, 0.0) for name in ("sock_inode_cache", "dentry"))
    return grown / sockets, gained("sock_inode_cache") / sockets, sockets
