"""The capacity model: how many connections these hosts can hold, and which limit binds first.

Everything comes from evidence that the hosts gave before the ramp: limits as found, and the sizes
of kernel objects from their own ``/proc/slabinfo``. Each limit (:mod:`bench.catalogue`) gives a
maximum of its own for the whole run, at each end that has it; the least is the prediction.

Left out on purpose, because they bound a rate, data or closed connections and not what is held
(:mod:`bench.remarks` tells what they do bound): ``somaxconn``, ``tcp_max_syn_backlog``,
``tcp_mem`` (pages are charged for queued data; an idle socket has none: ``sockstat`` says ``mem
0`` beside 40,000 sockets on Linux 6.1), ``tcp_max_orphans``, ``tcp_max_tw_buckets`` and the size
of the established-hash table.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

from bench.agent.memory import PINNED_BYTES
from bench.agent.workers import RESERVE, SPARE
from bench.catalogue import CATALOGUE
from bench.collect import cgroups, objects, slab
from bench.footprint import FD_BYTES, HELD_BYTES, WORKER_BYTES
from bench.inventory import Host, Inventory
from bench.results import Bound, Forecast, HostRecord, Phase, Predicted
from bench.scenario import Scenario

OWN_FDS = {"server": 11, "client": 10}
"""Descriptors that a worker really has open beside its connections and listeners: its streams,
its orders, the bell, epoll, the memory gauge and what else it inherits. Where a limit is looked
for, or the number of workers is given, nothing is kept in reserve, and this is what counts."""

WORD_BITS = 64

Side = Literal["server", "client"]
SIDES: dict[str, Side] = {"servers": "server", "clients": "client"}


class Room(NamedTuple):
    """A limit and how much of it is taken."""

    limit: int
    used: int


@dataclass(frozen=True)
class Share:
    """One host's part of the run on one side, and its own limits. None: does not apply."""

    host: str
    end: Side
    part: Fraction
    """Share of all connections that this host holds one end of."""
    nofile: int
    """Limit on open files of a process."""
    nr_open: int
    reserve: int
    """Descriptors of a process that are not connections."""
    kernel_bytes: float
    """Slab bytes of one connection's end on this host."""
    workers: int | None = None
    """Processes, where their number is given; None: as many as there are descriptors for."""
    watches: int = 0
    """Epoll watches per connection: 1 or 0."""
    tracked: Room | None = None
    """Connection tracking, where it is active."""
    ports: Room | None = None
    """Ports that the kernel may choose from for all addresses and endpoints together."""
    tasks: Room | None = None
    """Of the host's own cgroups."""
    memory_max: Room | None = None
    """The cgroup's memory, bytes."""
    worker_bytes: int = 0
    """Memory of a worker that is not there yet."""

    @property
    def descriptors(self) -> int:
        """Open files of one process: alloc_fd() stops at the lower of the two.

        A table of descriptors has whole words of bits, and none grows beyond fs.nr_open (fs/file.c
        ``alloc_fdtable``): with 4,000 the last descriptor is 3,967.
        """
        return min(self.nofile, self.nr_open // WORD_BITS * WORD_BITS)

    @property
    def room(self) -> int:
        """Connections that one process can hold."""
        return max(0, self.descriptors - self.reserve)

    @property
    def bytes_each(self) -> float:
        """Memory of one connection's end: slab, descriptor table, the agent's own, its worker's."""
        worker = self.worker_bytes / self.room if self.room else 0
        return self.kernel_bytes + FD_BYTES + HELD_BYTES + worker


@dataclass(frozen=True)
class Kernel:
    """One running kernel with the hosts that share it. None: not known, so it bounds nothing."""

    host: str
    """The host that told of it."""
    shares: tuple[Share, ...]
    memory: Room | None
    """Memory that is free or reclaimable, and the floor that the run must leave, bytes."""
    files: Room | None
    """fs.file-max and what is open."""
    tasks: Room | None
    """The least of kernel.pid_max, kernel.threads-max and RLIMIT_NPROC, and the tasks there are."""
    watches: Room | None


def watches_default(mem_total_kib: int, watch_bytes: int = 120 + 64) -> int:
    """Default of fs.epoll.max_user_watches: 4 % of memory over the cost of one watch.

    fs/eventpoll.c ``eventpoll_init``: ``((totalram - totalhigh) / 25) << PAGE_SHIFT`` divided by
    ``EP_ITEM_COST``, the size of an epitem and an eppoll_entry (120 + 64 B on Linux 6.1 and
    6.18, 128 + 72 B on 5.10). ``totalram`` is that of boot, up to 2 % less than MemTotal.
    """
    return mem_total_kib * 1024 // 25 // watch_bytes


def bounds(kernels: Iterable[Kernel], tuples: int) -> list[Bound]:
    """Every limit at every end that has it, the least maximum first.

    Where several hosts of an end have a limit, the one that binds first stands for all. A kernel
    or host without a part in the run bounds nothing.
    """
    found: dict[tuple[str, str], Bound] = {}

    def bound(name: str, end: str, host: str, room: Room | None, per: float | Fraction) -> None:
        if room is None or per <= 0:
            return
        most = max(0, math.floor(Fraction(room.limit - room.used) / Fraction(per)))
        before = found.get((name, end))
        if before is None or most < before.max_connections:
            found[name, end] = Bound.model_validate(
                {
                    "name": name,
                    "end": end,
                    "host": host,
                    "max_connections": most,
                    "limit": room.limit,
                    "used": room.used,
                    "per_connection": float(per),
                    "unit": CATALOGUE[name].unit,
                }
            )

    bound("tuples", "path", "", Room(tuples, 0), 1)
    for kernel in kernels:
        parts = [share for share in kernel.shares if share.part > 0]
        for one in parts:
            name = "nofile" if one.nofile <= one.nr_open else "fs.nr_open"
            # Of as many workers as it likes, the parent must have a pipe to each.
            workers = one.workers or max(1, one.descriptors - RESERVE)
            bound(name, one.end, one.host, Room(one.descriptors, one.reserve), one.part / workers)
            if one.workers is None and one.room:
                bound("pids", one.end, one.host, one.tasks, one.part / one.room)
            bound("nf_conntrack_max", one.end, one.host, one.tracked, one.part)
            bound("ip_local_port_range", one.end, one.host, one.ports, one.part)
            bound("memory.max", one.end, one.host, one.memory_max, float(one.part) * one.bytes_each)
        ends = {share.end for share in parts}
        end = ends.pop() if len(ends) == 1 else "both"
        started = sum((s.part / s.room for s in parts if s.workers is None and s.room), Fraction(0))
        bound("pids", end, kernel.host, kernel.tasks, started)
        bound("fs.file-max", end, kernel.host, kernel.files, _ends(kernel))
        watched = sum((s.part * s.watches for s in parts), Fraction(0))
        bound("fs.epoll.max_user_watches", end, kernel.host, kernel.watches, watched)
        bound("memory", end, kernel.host, kernel.memory, connection_bytes(kernel))
    return sorted(found.values(), key=lambda one: (one.max_connections, one.name, one.end))


def binding(found: Iterable[Bound]) -> dict[str, Bound]:
    """The limit that binds first at each end that has one: ``server``, ``client``, ``path``.

    A limit of a kernel with both ends binds either of them.
    """
    first: dict[str, Bound] = {}
    for one in sorted(found, key=lambda one: one.max_connections):
        for end in ("server", "client") if one.end == "both" else (one.end,):
            first.setdefault(end, one)
    return first


def connection_bytes(kernel: Kernel) -> float:
    """Memory that one more connection of the run takes from a kernel, in bytes."""
    return sum(float(share.part) * share.bytes_each for share in kernel.shares)


def slab_bytes(kernel: Kernel) -> float:
    """Slab that one more connection of the run takes from a kernel, in bytes."""
    return sum(float(share.part) * share.kernel_bytes for share in kernel.shares)


def _ends(kernel: Kernel) -> Fraction:
    """Sockets that a kernel gains with one more connection of the run."""
    return sum((share.part for share in kernel.shares), Fraction(0))


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
        for group in SIDES
    }
    notes = _disagreement(hosts)
    shares = {
        (name, group): _share(
            scenario,
            inventory,
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
    for name, host in sorted(hosts.items()):
        if not texts.get(name, {}).get("slabinfo"):
            before = host.phases.get("before")
            why = before.missing.get("slabinfo", "not sent") if before else "not sent"
            notes.append(
                f"{name}: slabinfo could not be read ({why}): built-in object sizes of Linux "
                f"{'.'.join(map(str, objects.row_release(host.kernel)))} stand in"
            )
    covered = sum(
        float(share.part) * share.kernel_bytes
        for (_, group), share in shares.items()
        if inventory.underlay or group == "servers"
    )
    servers = [name for name, host in hosts.items() if "servers" in host.groups]
    if inventory.underlay:  # one kernel, and any host sees it: a server speaks for all
        told = (servers or list(hosts))[0]
        kernels = {told: _kernel(scenario, told, hosts, tuple(shares.values()))}
    else:
        kernels = {
            name: _kernel(
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
    held = Fraction(1) if inventory.underlay else part["servers"]
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
        notes=notes,
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
    sockets = connections * float(_ends(kernel))
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


def local_ports(scenario: Scenario, inventory: Inventory, host: Host, record: HostRecord) -> int:
    """Connections of a client whose source ports the kernel chooses.

    From one address to one endpoint, as many as ``ip_local_port_range`` has, less
    ``ip_local_reserved_ports`` (ip-sysctl.rst). A host that told of no range has the default.
    """
    words = record.sysctl.get("net.ipv4.ip_local_port_range", "32768 60999").split()
    first, last = int(words[0]), int(words[1])
    reserved = set(_ports(record.sysctl.get("net.ipv4.ip_local_reserved_ports", "")))
    each = len(set(range(first, last + 1)) - reserved)
    pairs = sum(
        ipaddress.ip_address(source).version == ipaddress.ip_address(target).version
        for source in host.data_addresses
        for server in inventory.of("servers")
        for target in server.data_addresses
    )
    return each * pairs * len(scenario.server_ports)


def _ports(text: str) -> Iterable[int]:
    """Ports of a list such as ``8080,9000-9010``."""
    for item in text.replace(",", " ").split():
        first, _, last = item.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _share(
    scenario: Scenario,
    inventory: Inventory,
    name: str,
    record: HostRecord,
    texts: Mapping[str, str],
    group: str,
    part: Fraction,
) -> Share:
    """A host's share of the run on one side, from what it said before the ramp."""
    host = inventory.hosts[name]
    server = group == "servers"
    watched = server and scenario.watch == "epoll"
    most, now = (_number(record, f"net.netfilter.nf_conntrack_{what}") for what in ("max", "count"))
    # A maximum of 0 is none (net/netfilter/nf_conntrack_core.c __nf_conntrack_alloc).
    tracked = bool(most) and bool(record.limits.get("tracking"))
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
    nofile = int(record.limits[f"nofile_{scenario.nofile}"])
    listeners = len(scenario.server_ports) * len(host.data_addresses) if server else 0
    chosen = not server and scenario.source_ports == "kernel"
    to_the_end = scenario.workers is not None or scenario.expect == "limit"
    before = record.phases.get("before")
    return Share(
        host=name,
        end=SIDES[group],
        part=part,
        nofile=nofile,
        nr_open=_number(record, "fs.nr_open") or nofile,
        reserve=(OWN_FDS[SIDES[group]] if to_the_end else RESERVE) + listeners,
        kernel_bytes=objects.endpoint_bytes(parts, record.kernel, caches, aliases),
        workers=scenario.workers,
        watches=int(watched),
        tracked=Room(most or 0, now or 0) if tracked else None,
        ports=Room(local_ports(scenario, inventory, host, record), 0) if chosen else None,
        tasks=_grouped_tasks(record, before),
        memory_max=_least_room(before, "memory.max", "memory.current"),
        worker_bytes=0 if scenario.workers or before is None or before.workers else WORKER_BYTES,
    )


def _own_tasks(record: HostRecord, before: Phase) -> int:
    """Tasks found on a host that are this run's: workers, doorkeeper, who gathered the evidence."""
    doorkeeper = int("servers" in record.groups and before.workers > 0)
    return before.workers + doorkeeper + 1


def _grouped_tasks(record: HostRecord, before: Phase | None) -> Room | None:
    """Of the agent's cgroups, the one with the least room for workers.

    What the agent keeps for itself is :data:`SPARE`.
    """
    grouped = _least_room(before, "pids.max", "pids.current")
    if grouped is None or before is None:
        return None
    return Room(grouped.limit, grouped.used + SPARE - _own_tasks(record, before))


def _tasks(record: HostRecord, before: Phase | None, own_run: int, agents: int) -> Room | None:
    """The limit on a kernel's tasks that leaves the least room for workers.

    :param own_run: tasks found that are this run's, on all hosts of the kernel
    :param agents: of the run on this kernel
    """
    if before is None:
        return None
    rooms = []
    own, allowed = record.limits.get("own_tasks"), before.limits.get("max_processes_soft")
    if isinstance(own, int) and isinstance(allowed, int):
        rooms.append(Room(allowed, own + SPARE * agents))
    running = str(before.limits.get("/proc/loadavg", "")).partition("/")[2].split(" ")[0]
    if running.isdigit():
        for key in ("kernel.pid_max", "kernel.threads-max"):
            most = before.limits.get(key)
            if isinstance(most, int):
                rooms.append(Room(most, int(running) + SPARE * agents - own_run))
    return min(rooms, key=lambda room: room.limit - room.used, default=None)


def _least_room(before: Phase | None, limit: str, used: str) -> Room | None:
    """Of the agent's cgroups, the one with the least room left under a limit."""
    groups = before.cgroups if before else {}
    found = cgroups.rooms(groups, limit, used)
    return Room(*min(found, key=lambda room: room[0] - room[1])) if found else None


def _kernel(
    scenario: Scenario, name: str, hosts: Mapping[str, HostRecord], shares: tuple[Share, ...]
) -> Kernel:
    """The kernel that a host runs on, as the host saw it before the ramp.

    :param hosts: all on that kernel
    :param shares: of all of them
    """
    host = hosts[name]
    own_run = sum(
        _own_tasks(one, one.phases["before"]) for one in hosts.values() if "before" in one.phases
    )
    before = host.phases.get("before")
    most = _number(host, "fs.file-max")
    used = _files(before)
    free = _free_kib(before, used)
    watches = _number(host, "fs.epoll.max_user_watches")
    return Kernel(
        host=name,
        shares=shares,
        memory=None if free is None else Room(free * 1024, scenario.memory_floor_mib << 20),
        files=None if most is None else Room(most, used),
        tasks=_tasks(host, before, own_run, len(hosts)),
        watches=Room(watches_default(host.mem_total_kib) if watches is None else watches, 0),
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
