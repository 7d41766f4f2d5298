"""The capacity model: how many connections these hosts can hold, and which limit binds first.

The model uses the hosts' evidence from before the ramp: the limits as found, and the sizes of
kernel objects from the hosts' own ``/proc/slabinfo``. Each limit (:mod:`bench.model.catalogue`) has
its own maximum for the whole run, at each end that has the limit. The lowest maximum is the
prediction.

Some limits are left out on purpose, because they bound a rate, data or closed connections and not
the connections held (:mod:`bench.model.remarks` has them): ``somaxconn``, ``tcp_max_syn_backlog``,
``tcp_mem`` (pages are charged for queued data; an idle socket has none: ``sockstat`` says ``mem
0`` beside 40,000 sockets on Linux 6.1), ``tcp_max_orphans``, ``tcp_max_tw_buckets`` and the size
of the established-hash table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from bench.model import headroom, objects
from bench.model.bounds import Kernel, bounds, ends, slab_bytes
from bench.model.footprint import FD_BYTES, HELD_BYTES
from bench.model.headroom import SIDES
from bench.plan.topology import Topology
from bench.results.format import Forecast, HostRecord, Predicted


def predict(
    topology: Topology,
    hosts: Mapping[str, HostRecord],
    texts: Mapping[str, Mapping[str, str]],
    tuples: int,
) -> Predicted:
    """Return the prediction for a run, from the phase ``before``.

    The model assumes that clients and servers share the connections evenly.
    ``kernel_bytes_per_connection`` covers the same ends as the measured figure: both ends if the
    hosts share one kernel, otherwise the servers' end.

    :param texts: host to the sources' texts (``slabinfo``, ``slab_aliases``)
    :param tuples: connections that addresses and ports allow
    """
    scenario, shared = topology.scenario, topology.inventory.underlay
    part = {
        group: Fraction(1, max(1, sum(group in host.groups for host in hosts.values())))
        for group in SIDES
    }
    shares = {
        (name, group): headroom.share(
            topology,
            name,
            host,
            texts.get(name, {}),
            group,
            part[group],
        )
        for name, host in sorted(hosts.items())
        for group in SIDES
        if group in host.groups
    }
    covered = sum(
        float(share.part) * share.kernel_bytes
        for (_, group), share in shares.items()
        if shared or group == "servers"
    )
    servers = [name for name, host in hosts.items() if "servers" in host.groups]
    if shared:  # one kernel, which every host sees: one server stands for all
        told = (servers or list(hosts))[0]
        kernels = {told: headroom.kernel(scenario, told, hosts, tuple(shares.values()))}
    else:
        kernels = {
            name: headroom.kernel(
                scenario,
                name,
                {name: host},
                tuple(share for (owner, _), share in shares.items() if owner == name),
            )
            for name, host in hosts.items()
        }
    found = bounds(kernels.values(), tuples)
    limits: dict[str, int] = {}
    for one in found:  # the lowest comes first
        limits.setdefault(one.name, one.max_connections)
    held = Fraction(1) if shared else part["servers"]
    forecasts = [
        forecast(server, before.meminfo_kib, kernels[server], scenario.connections, held)
        for server in servers
        if server in kernels
        and (before := hosts[server].phases.get("before"))
        and {"MemFree", "MemAvailable"} <= before.meminfo_kib.keys()
    ]
    return Predicted(
        max_connections=found[0].max_connections,
        bound_by=found[0].name,
        kernel_bytes_per_connection=round(covered, 1),
        limits=limits,
        bounds=found,
        notes=[*_disagreement(hosts), *_stand_ins(hosts, texts)],
        forecast=min(forecasts, key=lambda one: one.mem_free_expected_kib, default=None),
    )


def forecast(
    server: str,
    meminfo_kib: Mapping[str, int],
    kernel: Kernel,
    connections: int,
    held: Fraction = Fraction(1),
) -> Forecast:
    """Return what the run will leave of a server's memory.

    The page cache counts as in use; if MemFree is not enough, the kernel drops page cache first.

    :param meminfo_kib: meminfo of the server before the ramp
    :param kernel: the kernel that the server runs on, with the shares of all its hosts
    :param connections: connections of the whole run
    :param held: the part of them that this kernel's servers hold
    """
    sockets = connections * float(ends(kernel))
    slab_taken = connections * slab_bytes(kernel)
    tables = sockets * FD_BYTES
    agents = sockets * HELD_BYTES
    free = meminfo_kib["MemFree"]
    return Forecast(
        host=server,
        connections=math.ceil(connections * held),
        mem_free_kib=free,
        mem_available_kib=meminfo_kib["MemAvailable"],
        slab_kib=round(slab_taken / 1024),
        descriptors_kib=round(tables / 1024),
        agents_kib=round(agents / 1024),
        mem_free_expected_kib=round(free - (slab_taken + tables + agents) / 1024),
    )


def _disagreement(hosts: Mapping[str, HostRecord]) -> list[str]:
    """Return a note if the hosts run different kernels; each host then has its own object sizes."""
    kernels: dict[str, list[str]] = {}
    for name, host in sorted(hosts.items()):
        kernels.setdefault(host.kernel, []).append(name)
    if len(kernels) < 2:
        return []
    listed = "; ".join(f"{kernel} on {', '.join(names)}" for kernel, names in kernels.items())
    return [f"the hosts run different kernels, each with its own object sizes: {listed}"]


def _stand_ins(
    hosts: Mapping[str, HostRecord], texts: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Return a note for each host that did not report the sizes of its kernel objects."""
    notes = []
    for name, host in sorted(hosts.items()):
        if not texts.get(name, {}).get("slabinfo"):
            before = host.phases.get("before")
            why = before.missing.get("slabinfo", "not sent") if before else "not sent"
            notes.append(
                f"{name}: slabinfo could not be read ({why}): the model uses built-in object "
                f"sizes, those of Linux {'.'.join(map(str, objects.row_release(host.kernel)))}"
            )
    return notes
