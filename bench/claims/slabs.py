"""The server's end of a connection, separated from the client's: slab bytes by cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.claims.lab import NotMeasurable
from bench.errors import LabError
from bench.model import objects
from bench.results import cost
from bench.results.format import Phase, Run

ALIKE = frozenset(objects.parts(server=True)) | {"TCPv6"}
"""Caches of which both ends of a connection use the same: one object each."""


@dataclass(frozen=True)
class ServerMemory:
    """The kernel memory of the servers' ends of a run's connections."""

    each: float
    """Bytes per connection."""
    by_cache: dict[str, float]
    by_kernel: dict[str, float]
    """Kernel release to bytes per connection."""
    split: str
    """How the server's end was separated from the client's."""
    disturbed: bool
    """Whether sockets outside the run were opened or closed."""


def of_servers(run: Run, shared_kernel: bool) -> ServerMemory:
    """Return the servers' ends of a run whose connections were not watched.

    If the server has its own kernel, the growth of its slabs is the result. On a shared kernel,
    which others use too, slabs have room that others left, and both ends are in them. There an end
    is measured by its objects (:func:`per_socket`). Only the client has port buckets, which are in
    other caches (net/ipv4/inet_hashtables.c: an accepted socket shares its listener's).

    :raises NotMeasurable: if the servers' slab caches were not read.
    """
    found = run.measured.kernel_bytes_per_connection
    if not {"TCP", "TCPv6"} & set(found.by_cache):
        raise NotMeasurable("the servers' slab caches could not be read: only root may")
    disturbed = cost.disturbed(found)
    servers = {name: host for name, host in run.hosts.items() if "servers" in host.groups}
    releases = sorted({host.kernel for host in servers.values()})
    if shared_kernel:
        phases = next(iter(servers.values())).phases
        by_cache = per_socket(phases["before"], phases["peak"])
        each = round(sum(by_cache.values()), 1)
        return ServerMemory(
            each,
            {name: round(part, 1) for name, part in by_cache.items()},
            dict.fromkeys(releases, each),
            "both ends on one kernel: objects gained per socket, times what one takes",
            disturbed,
        )
    by_kernel = {}
    for release in releases:
        same = {name: host for name, host in servers.items() if host.kernel == release}
        by_kernel[release] = cost.kernel_bytes(same, shared_kernel=False).server or 0.0
    return ServerMemory(
        found.server or 0.0,
        dict(found.by_cache),
        by_kernel,
        "a kernel of its own: growth of its slabs per connection",
        disturbed,
    )


def kib(server: str, phases: Mapping[str, Phase], phase: str, *fields: str) -> int:
    """Return the sum of fields of a server's ``/proc/meminfo`` in a phase, KiB.

    :raises LabError: if a field is missing
    """
    told = phases[phase].meminfo_kib
    for field in fields:
        if field not in told:
            why = phases[phase].missing.get("meminfo", "no such line")
            raise LabError(f"host {server}: evidence {phase}: meminfo: {field}: {why}")
    return sum(told[field] for field in fields)


def sockets(before: Phase, peak: Phase) -> int:
    """Return the TCP sockets that a kernel gained; 0 if slabinfo was not read."""
    return max(0, gained("TCP", before, peak) + gained("TCPv6", before, peak))


def gained(cache: str, before: Phase, peak: Phase) -> int:
    """Return how many more objects a slab cache had allocated at the peak."""
    return peak.slab_objects.get(cache, 0) - before.slab_objects.get(cache, 0)


def per_socket(before: Phase, peak: Phase) -> dict[str, float]:
    """Return bytes per socket in the caches that both ends use alike, largest first.

    The result is the objects gained for each socket, times the bytes of one at the peak. A socket
    has at most one object of each cache (:func:`bench.model.objects.parts`): anything above that
    belongs to others.
    """
    number = sockets(before, peak)
    found = {}
    for cache in ALIKE:
        more, held = gained(cache, before, peak), peak.slab_objects.get(cache, 0)
        if number and more > 0 and held:
            found[cache] = min(1.0, more / number) * peak.slab_bytes.get(cache, 0) / held
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
