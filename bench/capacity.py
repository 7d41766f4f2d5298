"""The capacity model: how many connections these hosts can hold, and which limit binds first.

Everything comes from evidence that the hosts gave before the ramp: limits as found, and the sizes
of kernel objects from their own ``/proc/slabinfo``. Each limit gives a maximum of its own for the
whole run; the least of them is the prediction.

=========================== =====================================================================
limit                       maximum, per host or kernel that is asked to hold a share of the run
=========================== =====================================================================
tuples                      addresses x ports planned (a connection is its four-tuple, RFC 9293)
nofile                      descriptors per worker less the reserve, times the workers that the
                            parent has descriptors to talk to
fs.nr_open                  the same, where it is below nofile (fs/file.c ``alloc_fd``)
fs.file-max                 open files of the kernel (fs/file_table.c ``alloc_empty_file``), less
                            those open before; CAP_SYS_ADMIN is spared, the agents lack it
memory                      what is free or reclaimable above the floor / bytes per connection
fs.epoll.max_user_watches   watched connections of one user, kernel-wide (fs/eventpoll.c
                            ``ep_insert``)
nf_conntrack_max            tracked connections of a network namespace, where tracking is active
                            (net/netfilter/nf_conntrack_core.c ``__nf_conntrack_alloc``)
ip_local_port_range         only where source ports are left to the kernel
=========================== =====================================================================

Left out on purpose: ``tcp_mem`` (pages are charged for queued data; an idle socket has none:
``sockstat`` says ``mem 0`` beside 40,000 sockets on Linux 6.1), ``tcp_max_orphans`` (counts
sockets that no process holds), ``tcp_max_tw_buckets`` (closed connections), ``somaxconn`` and
``tcp_max_syn_backlog`` (a rate, not a number held).
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from bench.agent.memory import PINNED_BYTES
from bench.agent.workers import RESERVE
from bench.collect import objects, slab
from bench.inventory import Host, Inventory
from bench.results import Forecast, HostRecord, Phase, Predicted
from bench.scenario import Scenario

FD_BYTES = 2 * (8 + 0.25)
"""Kernel's descriptor table per open file: a pointer and two bits (fs/file.c ``alloc_fdtable``),
twice because the table grows by doubling."""

USERLAND_BYTES = 8
"""Agents' own memory per connection and end: a flag or a descriptor number in an array that
grows by doubling."""


@dataclass(frozen=True)
class Share:
    """One host's part of the run and its own limits."""

    part: Fraction
    """Share of all connections that this host holds one end of."""
    nofile: int
    """Hard limit on open files of a process."""
    nr_open: int
    reserve: int
    """Descriptors of a process that are not connections."""
    kernel_bytes: float
    """Slab bytes of one connection's end on this host."""
    watches: int = 0
    """Epoll watches per connection: 1 or 0."""
    conntrack_free: int | None = None
    """Connections that can still be tracked; None where tracking is not active."""
    local_ports: int | None = None
    """Tuples that ``ip_local_port_range`` allows; None where ports are explicit."""

    @property
    def descriptors(self) -> int:
        """Open files of one process: alloc_fd() stops at the lower of the two."""
        return min(self.nofile, self.nr_open)


@dataclass(frozen=True)
class Kernel:
    """One running kernel with the hosts that share it. None: not known, so it bounds nothing."""

    shares: tuple[Share, ...]
    free_bytes: int | None
    """Memory that is free or reclaimable, above the floor that the run must leave."""
    files_free: int | None
    """fs.file-max less what is open."""
    max_user_watches: int | None


def watches_default(mem_total_kib: int, watch_bytes: int = 120 + 64) -> int:
    """Default of fs.epoll.max_user_watches: 4 % of memory over the cost of one watch.

    fs/eventpoll.c ``eventpoll_init``: ``((totalram - totalhigh) / 25) << PAGE_SHIFT`` divided by
    ``EP_ITEM_COST``, the size of an epitem and an eppoll_entry (120 + 64 B on Linux 6.1 and
    6.18, 128 + 72 B on 5.10). ``totalram`` is that of boot, up to 2 % less than MemTotal.
    """
    return mem_total_kib * 1024 // 25 // watch_bytes


def maxima(kernels: tuple[Kernel, ...], tuples: int) -> dict[str, int]:
    """Each limit's own maximum of connections for the whole run, by name.

    Only limits that apply are named; a kernel or host without a part in the run bounds nothing.
    """
    found = {"tuples": tuples}

    def bound(name: str, allowed: int | None, load: float | Fraction) -> None:
        if allowed is not None and load > 0:
            most = max(0, int(Fraction(allowed) / Fraction(load)))
            found[name] = min(most, found.get(name, most))

    for kernel in kernels:
        parts = [share for share in kernel.shares if share.part > 0]
        for share in parts:
            room = max(0, share.descriptors - share.reserve)
            name = "nofile" if share.nofile <= share.nr_open else "fs.nr_open"
            bound(name, room * room, share.part)
            if share.conntrack_free is not None:
                bound("nf_conntrack_max", share.conntrack_free, share.part)
            if share.local_ports is not None:
                bound("ip_local_port_range", share.local_ports, share.part)
        bound("fs.file-max", kernel.files_free, sum((s.part for s in parts), Fraction(0)))
        watched = sum((s.part * s.watches for s in parts), Fraction(0))
        bound("fs.epoll.max_user_watches", kernel.max_user_watches, watched)
        bound("memory", kernel.free_bytes, connection_bytes(kernel))
    return found


def connection_bytes(kernel: Kernel) -> float:
    """Memory that one more connection of the run takes from a kernel, in bytes."""
    return slab_bytes(kernel) + ends(kernel) * (FD_BYTES + USERLAND_BYTES)


def slab_bytes(kernel: Kernel) -> float:
    """Slab that one more connection of the run takes from a kernel, in bytes."""
    return sum(float(share.part) * share.kernel_bytes for share in kernel.shares)


def ends(kernel: Kernel) -> float:
    """Sockets that a kernel gains with one more connection of the run."""
    return float(sum((share.part for share in kernel.shares), Fraction(0)))


def least(found: Mapping[str, int]) -> tuple[str, int]:
    """The limit that binds first and its maximum."""
    name = min(found, key=lambda key: found[key])
    return name, found[name]


def predict(
    scenario: Scenario,
    inventory: Inventory,
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
    part = {
        group: Fraction(1, max(1, sum(group in host.groups for host in hosts.values())))
        for group in ("servers", "clients")
    }
    shares = {
        (name, group): _share(
            scenario, inventory.hosts[name], host, texts.get(name, {}), group, part[group]
        )
        for name, host in sorted(hosts.items())
        for group in ("servers", "clients")
        if group in host.groups
    }
    covered = sum(
        float(share.part) * share.kernel_bytes
        for (_, group), share in shares.items()
        if inventory.underlay or group == "servers"
    )
    servers = [name for name, host in hosts.items() if "servers" in host.groups]
    if inventory.underlay:  # one kernel, and any host sees it: a server speaks for all
        told = (servers or list(hosts))[0]
        kernels = {told: _kernel(scenario, hosts[told], tuple(shares.values()))}
    else:
        kernels = {
            name: _kernel(
                scenario, host, tuple(s for (owner, _), s in shares.items() if owner == name)
            )
            for name, host in hosts.items()
        }
    found = maxima(tuple(kernels.values()), tuples)
    name, most = least(found)
    held = Fraction(1) if inventory.underlay else part["servers"]
    forecasts = [
        forecast(server, before.meminfo_kib, kernels[server], scenario.connections, held)
        for server in servers
        if server in kernels
        and (before := hosts[server].phases.get("before"))
        and {"MemFree", "MemAvailable"} <= before.meminfo_kib.keys()
    ]
    return Predicted(
        max_connections=most,
        bound_by=name,
        kernel_bytes_per_connection=round(covered, 1),
        limits=dict(sorted(found.items(), key=lambda item: item[1])),
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
    slab = connections * slab_bytes(kernel)
    tables = connections * ends(kernel) * FD_BYTES
    agents = connections * ends(kernel) * USERLAND_BYTES
    free = meminfo_kib["MemFree"]
    return Forecast(
        host=server,
        connections=math.ceil(connections * held),
        mem_free_kib=free,
        mem_available_kib=meminfo_kib["MemAvailable"],
        slab_kib=round(slab / 1024),
        descriptors_kib=round(tables / 1024),
        agents_kib=round(agents / 1024),
        mem_free_expected_kib=round(free - (slab + tables + agents) / 1024),
    )


def _share(
    scenario: Scenario,
    host: Host,
    record: HostRecord,
    texts: Mapping[str, str],
    group: str,
    part: Fraction,
) -> Share:
    """A host's share of the run on one side, from what it said before the ramp."""
    server = group == "servers"
    watched = server and scenario.watch == "epoll"
    most, now = (_number(record, f"net.netfilter.nf_conntrack_{what}") for what in ("max", "count"))
    # The hooks are registered per namespace, on demand; where they are, the management
    # connection that asked for this number is itself tracked.
    tracked = bool(most is not None and now)
    parts = objects.parts(
        server=server,
        watched=watched,
        tracked=tracked,
        v6=ipaddress.ip_address(host.data_addresses[0]).version == 6,
        sources=len(host.data_addresses),
    )
    try:
        caches = slab.parse(texts.get("slabinfo", ""))
        aliases = slab.parse_aliases(texts.get("slab_aliases", ""))
    except ValueError:  # the phase names it in ``missing``; the table stands in
        caches, aliases = {}, {}
    nofile = int(record.limits["nofile_hard"])
    return Share(
        part=part,
        nofile=nofile,
        nr_open=_number(record, "fs.nr_open") or nofile,
        reserve=RESERVE + (len(scenario.server_ports) * len(host.data_addresses) if server else 0),
        kernel_bytes=objects.endpoint_bytes(parts, record.kernel, caches, aliases),
        watches=int(watched),
        conntrack_free=(most or 0) - (now or 0) if tracked else None,
    )


def _kernel(scenario: Scenario, host: HostRecord, shares: tuple[Share, ...]) -> Kernel:
    """The kernel that a host runs on, as the host saw it before the ramp.

    :param shares: of all hosts on that kernel
    """
    before = host.phases.get("before")
    most = _number(host, "fs.file-max")
    used = _files(before)
    free = _free_kib(before, used)
    watches = _number(host, "fs.epoll.max_user_watches")
    return Kernel(
        shares=shares,
        free_bytes=None if free is None else (free - scenario.memory_floor_mib * 1024) * 1024,
        files_free=None if most is None else most - used,
        max_user_watches=watches_default(host.mem_total_kib) if watches is None else watches,
    )


def _number(host: HostRecord, key: str) -> int | None:
    """A sysctl that is one number; None where the host has none of that name."""
    text = host.sysctl.get(key, "")
    return int(text) if text.strip().isdigit() else None


def _files(before: Phase | None) -> int:
    """Open files of the kernel: fs.file-nr's first number, else the file objects in use."""
    if before is None:
        return 0
    listed = before.limits.get("fs.file-nr")
    if listed is not None:
        return int(str(listed).split()[0])
    return before.slab_objects.get("filp", 0)


def _free_kib(before: Phase | None, files: int) -> int | None:
    """Memory really free or reclaimable: MemAvailable without what open files pin.

    The kernel counts dentries and inodes of open files as reclaimable
    (:mod:`bench.agent.memory`).
    """
    if before is None or "MemAvailable" not in before.meminfo_kib:
        return None
    return max(0, before.meminfo_kib["MemAvailable"] - files * PINNED_BYTES // 1024)
