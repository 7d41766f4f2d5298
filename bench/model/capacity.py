"""The capacity model: how many connections these hosts can hold, and which limit binds first.

Everything comes from evidence that the hosts gave before the ramp: limits as found, and the sizes
of kernel objects from their own ``/proc/slabinfo``. Each limit (:mod:`bench.model.catalogue`) gives
a maximum of its own for the whole run, at each end that has it; the least is the prediction.

Left out on purpose, because they bound a rate, data or closed connections and not what is held
(:mod:`bench.model.remarks` tells what they do bound): ``somaxconn``, ``tcp_max_syn_backlog``,
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
    """The prediction for a run, from the phase ``before``.

    Connections are taken to be split evenly over the clients and over the servers.
    ``kernel_bytes_per_connection`` covers what the measured figure will: both ends where the
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
    if shared:  # one kernel, and any host sees it: a server speaks for all
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
    for one in found:  # the least comes first
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
    """What the run will leave of a server's memory.

    Page cache is taken to stay: where MemFree will not do, the kernel drops that first.

    :param meminfo_kib: of the server before the ramp
    :param kernel: what the server runs on, with the shares of all hosts on it
    :param connections: of the whole run
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
    """A note where hosts run different kernels: each is then judged by its own sizes."""
    kernels: dict[str, list[str]] = {}
    for name, host in sorted(hosts.items()):
        kernels.setdefault(host.kernel, []).append(name)
    if len(kernels) < 2:
        return []
    listed = "; ".join(f"{kernel} on {', '.join(names)}" for kernel, names in kernels.items())
    return [f"the hosts run different kernels, each is judged by its own sizes: {listed}"]


def _stand_ins(
    hosts: Mapping[str, HostRecord], texts: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """A note for each host that did not tell the sizes of its kernel objects."""
    notes = []
    for name, host in sorted(hosts.items()):
        if not texts.get(name, {}).get("slabinfo"):
            before = host.phases.get("before")
            why = before.missing.get("slabinfo", "not sent") if before else "not sent"
            notes.append(
                f"{name}: slabinfo could not be read ({why}): built-in object sizes of Linux "
                f"{'.'.join(map(str, objects.row_release(host.kernel)))} stand in"
            )
    return notes
