"""The hosts' evidence from before a run as input of the model: how much of each limit is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

from bench.agent.memory import PINNED_BYTES
from bench.agent.workers import RESERVE, SPARE
from bench.collect import ParseError, cgroups, slab
from bench.inventory import Host
from bench.model import objects
from bench.model.bounds import Kernel, Room, Share
from bench.model.footprint import WORKER_BYTES
from bench.plan.topology import Topology
from bench.results.format import HostRecord, Phase, Side
from bench.scenario import Scenario
from bench.units import whole

OWN_FDS = {"server": 12, "client": 11}
"""Descriptors that a worker really has open beside its connections and listeners: its streams,
its orders, the bell, epoll, the memory gauge, the run's lock and other inherited files. These count
if the run looks for a limit or the number of workers is given, because then there is no reserve."""

LAST_PORT = 65_535
"""16 bits (RFC 9293 section 3.1)."""

PORTS = 32_768, 60_999
"""The kernel's default of ip_local_port_range (net/ipv4/af_inet.c ``inet_init_net``)."""

SIDES: dict[str, Side] = {"servers": "server", "clients": "client"}
"""The inventory's groups that take part in a run, and the end of each group."""


def watches_default(mem_total_kib: int, watch_bytes: int = 120 + 64) -> int:
    """Return the default of fs.epoll.max_user_watches: 4 % of memory over the cost of one watch.

    fs/eventpoll.c ``eventpoll_init``: ``((totalram - totalhigh) / 25) << PAGE_SHIFT`` divided by
    ``EP_ITEM_COST``, the size of an epitem and an eppoll_entry (120 + 64 B on Linux 6.1 and
    6.18, 128 + 72 B on 5.10). ``totalram`` is the value at boot, up to 2 % less than MemTotal.
    """
    return mem_total_kib * 1024 // 25 // watch_bytes


def local_ports(topology: Topology, host: Host, record: HostRecord) -> int:
    """Return how many connections a client can open if the kernel chooses the source ports.

    From one address to one endpoint, that is the size of ``ip_local_port_range`` less
    ``ip_local_reserved_ports`` (ip-sysctl.rst). A host that reported no range has the default.
    """
    told = numbers(record, "net.ipv4.ip_local_port_range")
    first, last = (told[0], told[1]) if len(told) == 2 else PORTS
    reserved = set(_ports(record.sysctl.get("net.ipv4.ip_local_reserved_ports", "")))
    each = len(set(range(first, min(last, LAST_PORT) + 1)) - reserved)
    return each * len(topology.sources(host)) * len(topology.targets)


def _ports(text: str) -> Iterable[int]:
    """Yield the ports of a list such as ``8080,9000-9010``; skip what is not a port."""
    begins = 0  # the kernel lists them in order (kernel/sysctl.c proc_do_large_bitmap)
    for item in text.split(","):
        first, _, last = map(str.strip, item.partition("-"))
        low, high = whole(first), whole(last or first)
        if low is not None and high is not None:
            high = min(high, LAST_PORT)
            yield from range(max(begins, low), high + 1)
            begins = max(begins, high + 1)


def share(
    topology: Topology,
    name: str,
    record: HostRecord,
    texts: Mapping[str, str],
    group: str,
    part: Fraction,
) -> Share:
    """Return a host's share of the run on one side, from its evidence before the ramp."""
    scenario, host = topology.scenario, topology.inventory.hosts[name]
    server = group == "servers"
    watched = server and scenario.watch == "epoll"
    most, now = (number(record, f"net.netfilter.nf_conntrack_{what}") for what in ("max", "count"))
    # A maximum of 0 means no maximum (net/netfilter/nf_conntrack_core.c __nf_conntrack_alloc).
    tracked = bool(most) and bool(record.limits.get("tracking"))
    parts = objects.parts(
        server=server,
        watched=watched,
        tracked=tracked,
        v6=topology.family == 6,
        sources=0 if server else len(topology.sources(host)),
    )
    try:
        caches = slab.parse(texts.get("slabinfo", ""))
        aliases = slab.parse_aliases(texts.get("slab_aliases", ""))
    except ParseError:  # the phase names it in ``missing``; the model uses the table
        caches, aliases = {}, {}
    nofile = _nofile(scenario, record)
    listeners = len(topology.endpoints(host)) if server else 0
    chosen = not server and scenario.source_ports == "kernel"
    processes = scenario.processes(server)
    to_the_end = processes is not None or scenario.expect == "limit"
    before = record.phases.get("before")
    return Share(
        host=name,
        end=SIDES[group],
        part=part,
        nofile=nofile,
        nr_open=number(record, "fs.nr_open") or nofile,
        reserve=(OWN_FDS[SIDES[group]] if to_the_end else RESERVE) + listeners,
        kernel_bytes=objects.endpoint_bytes(parts, record.kernel, caches, aliases),
        workers=processes,
        watches=int(watched),
        tracked=Room(most or 0, now or 0) if tracked else None,
        ports=Room(local_ports(topology, host, record), 0) if chosen else None,
        tasks=_grouped_tasks(record, before),
        memory_max=_least_room(before, "memory.max", "memory.current"),
        worker_bytes=0 if processes or before is None or before.workers else WORKER_BYTES,
    )


def _nofile(scenario: Scenario, record: HostRecord) -> int:
    """Return the descriptors that a process of the agent may have."""
    if isinstance(scenario.nofile, int):
        return min(scenario.nofile, int(record.limits["nofile_hard"]))
    return int(record.limits[f"nofile_{scenario.nofile}"])


def _own_tasks(record: HostRecord, before: Phase) -> int:
    """Return this run's tasks on a host: workers, doorkeeper, and the collector of the evidence."""
    doorkeeper = int("servers" in record.groups and before.workers > 0)
    return before.workers + doorkeeper + 1


def _grouped_tasks(record: HostRecord, before: Phase | None) -> Room | None:
    """Return the room for workers in the agent's cgroup that has the least.

    The agent keeps :data:`SPARE` tasks for itself.
    """
    grouped = _least_room(before, "pids.max", "pids.current")
    if grouped is None or before is None:
        return None
    return Room(grouped.limit, grouped.used + SPARE - _own_tasks(record, before))


def _tasks(record: HostRecord, before: Phase | None, own_run: int, agents: int) -> Room | None:
    """Return the limit on a kernel's tasks that leaves the least room for workers.

    :param own_run: this run's tasks on all hosts of the kernel
    :param agents: agents of the run on this kernel
    """
    if before is None:
        return None
    rooms = []
    own, allowed = record.limits.get("own_tasks"), before.limits.get("max_processes_soft")
    if isinstance(own, int) and isinstance(allowed, int):
        rooms.append(Room(allowed, own + SPARE * agents))
    running = str(before.limits.get("/proc/loadavg", "")).partition("/")[2].split(" ")[0]
    tasks = whole(running)
    if tasks is not None:
        for key in ("kernel.pid_max", "kernel.threads-max"):
            most = before.limits.get(key)
            if isinstance(most, int):
                rooms.append(Room(most, tasks + SPARE * agents - own_run))
    return min(rooms, key=lambda room: room.limit - room.used, default=None)


def _least_room(before: Phase | None, limit: str, used: str) -> Room | None:
    """Return the room under a limit in the agent's cgroup that has the least left."""
    groups = before.cgroups if before else {}
    found = cgroups.rooms(groups, limit, used)
    return Room(*min(found, key=lambda room: room[0] - room[1])) if found else None


def kernel(
    scenario: Scenario, name: str, hosts: Mapping[str, HostRecord], shares: tuple[Share, ...]
) -> Kernel:
    """Return the kernel that a host runs on, as the host saw it before the ramp.

    :param hosts: all hosts on that kernel
    :param shares: the shares of all of them
    """
    host = hosts[name]
    own_run = sum(
        _own_tasks(one, one.phases["before"]) for one in hosts.values() if "before" in one.phases
    )
    before = host.phases.get("before")
    most = number(host, "fs.file-max")
    used = _files(before)
    free = _free_kib(before, used)
    watches = number(host, "fs.epoll.max_user_watches")
    return Kernel(
        host=name,
        shares=shares,
        memory=None if free is None else Room(free * 1024, scenario.memory_floor_mib << 20),
        files=None if most is None else Room(most, used),
        tasks=_tasks(host, before, own_run, len(hosts)),
        watches=Room(watches_default(host.mem_total_kib) if watches is None else watches, 0),
    )


def number(host: HostRecord, key: str) -> int | None:
    """Return a sysctl that is one number; None if the host has no such sysctl."""
    return whole(host.sysctl.get(key, "").strip())


def numbers(host: HostRecord, key: str) -> list[int]:
    """Return a sysctl that is a list of numbers; empty if the host has no such sysctl."""
    found = [whole(word) for word in host.sysctl.get(key, "").split()]
    return [one for one in found if one is not None] if None not in found else []


def _files(before: Phase | None) -> int:
    """Return the kernel's open files: fs.file-nr's first number, else the file objects in use."""
    if before is None:
        return 0
    listed = whole(" ".join(str(before.limits.get("fs.file-nr", "")).split()[:1]))
    return before.slab_objects.get("filp", 0) if listed is None else listed


def _free_kib(before: Phase | None, files: int) -> int | None:
    """Return the memory that is really free or reclaimable: MemAvailable less what open files pin.

    The kernel counts dentries and inodes of open files as reclaimable
    (:mod:`bench.agent.memory`).
    """
    if before is None or "MemAvailable" not in before.meminfo_kib:
        return None
    return max(0, before.meminfo_kib["MemAvailable"] - files * PINNED_BYTES // 1024)
