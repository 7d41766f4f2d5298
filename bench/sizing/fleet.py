"""The number of hosts that a number of connections needs, and the requirements of each host.

Pure arithmetic: nothing is read and nothing written. Servers and clients are machines with their
own kernels. Here the hosts share the connections evenly. A run shares them evenly over pairs of
client address and server endpoint (:mod:`bench.plan.tuples`), so from each client a server may get
up to one connection per endpoint more than here.

Errors name the options of ``python -m bench plan``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bench.agent.workers import RESERVE
from bench.errors import InputError
from bench.model import footprint, objects
from bench.model.footprint import Load, Machine, Ram
from bench.sizing import layout
from bench.sizing.rates import Rate
from bench.units import count, plural, size

FIRST_PORT, LAST_PORT = 1024, 65_535
"""Source ports of a client address: all that need no privilege
(``net.ipv4.ip_unprivileged_port_start``, Documentation/networking/ip-sysctl.rst)."""

CLIENT_PORTS = LAST_PORT - FIRST_PORT + 1


@dataclass(frozen=True)
class Wanted:
    """The request for a plan. The caller has checked each figure by itself."""

    connections: int
    server: Machine
    client: Machine
    servers: int | None = None
    """Number of servers; None: as few as can hold the connections."""
    server_ports: int = 1
    addresses_per_server: int = 1
    nofile: int = 1_048_576
    """Descriptors of a process: the kernel's default of fs.nr_open (fs/file.c)."""
    kernel: str = "6.1"
    watch: Literal["epoll", "none"] = "epoll"
    spare: Fraction = Fraction(1, 10)
    """Part of each host's memory that is left unplanned."""
    floor: int = 768 << 20
    """Bytes that must stay free: a scenario's ``memory_floor_mib``."""


class Model(BaseModel):
    """Base of the parts of a plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HostShare(Model):
    """A number of hosts with the same number of connections each."""

    hosts: int
    connections: int


class End(Model):
    """The hosts of one end. Limits, addresses and memory are those of one host."""

    hosts: int
    decided_by: str = Field(
        description="limit that requires that many hosts; none: one host is enough; "
        "option: the option asks for more than any limit requires"
    )
    limits: dict[str, int] = Field(
        description="connections that each limit lets one host hold, lowest first"
    )
    shares: list[HostShare] = Field(description="hosts by share of connections, largest first")
    cores: int
    workers: int = Field(description="processes that hold the largest share")
    addresses: int = Field(description="addresses on the data plane, including its own")
    ports: int = Field(description="ports of each address")
    ehash_entries: int = Field(description="established-hash table: a power of two, one each")
    ehash_default: int = Field(description="entries that the kernel makes by default")
    socket_bytes: float = Field(description="slab of one end of a connection, in bytes")
    ram: Ram = Field(description="memory for the largest share, in bytes")

    @property
    def largest(self) -> int:
        """Connections of the host that has the most."""
        return self.shares[0].connections

    @property
    def most(self) -> int:
        """Connections that one host can hold."""
        return next(iter(self.limits.values()))


class Ramp(Model):
    """The time to open the connections if every core of an end is at work."""

    seconds: float
    connections_per_second: float = Field(description="of the whole fleet")
    decided_by: Literal["servers", "clients", "both"] = Field(description="the slower end")
    per_core: float = Field(description="connections a second that one core opens at one end")
    source: str = Field(description="where that figure comes from")


class Fleet(Model):
    """The whole plan."""

    connections: int
    servers: End
    clients: End
    endpoints: int = Field(description="server addresses x server ports, over all servers")
    tuples: int = Field(
        description="tuples of addresses and ports: client addresses x client ports x endpoints"
    )
    kernel: str
    sizes_of: str = Field(description="kernel release whose object sizes stand for it")
    watch: Literal["epoll", "none"]
    nofile: int = Field(description="descriptors that a worker may have")
    ramp: Ramp


def plan(wanted: Wanted, rate: Rate) -> Fleet:
    """Return the fewest hosts that can hold the connections, and the requirements of each host.

    :raises InputError: if such hosts cannot hold them, with the option to change
    """
    listeners = wanted.server_ports * wanted.addresses_per_server
    serving = _load(wanted, "server", listeners)
    opening = _load(wanted, "client", 0)

    server_limits = _limits("server", serving)
    servers, why_servers = _servers(wanted, server_limits)
    endpoints = servers * listeners
    tuples = {"tuples": layout.MOST * CLIENT_PORTS * endpoints}
    client_limits = _limits("client", opening, tuples)
    clients, why_clients = _hosts(wanted.connections, client_limits)
    each = -(-wanted.connections // clients)
    addresses = layout.granted(-(-each // (CLIENT_PORTS * endpoints)))
    _check_room(wanted, servers, clients, addresses)

    shares = {hosts: _shares(wanted.connections, hosts) for hosts in (servers, clients)}
    return Fleet(
        connections=wanted.connections,
        servers=_end(
            serving,
            shares[servers],
            decided_by=why_servers,
            limits=server_limits,
            addresses=wanted.addresses_per_server,
            ports=wanted.server_ports,
        ),
        clients=_end(
            opening,
            shares[clients],
            decided_by=why_clients,
            limits=client_limits,
            addresses=addresses,
            ports=CLIENT_PORTS,
        ),
        endpoints=endpoints,
        tuples=clients * addresses * CLIENT_PORTS * endpoints,
        kernel=wanted.kernel,
        sizes_of=".".join(map(str, objects.row_release(wanted.kernel))),
        watch=wanted.watch,
        nofile=wanted.nofile,
        ramp=_ramp(
            wanted.connections,
            {"servers": servers * wanted.server.cores, "clients": clients * wanted.client.cores},
            rate,
        ),
    )


def _load(wanted: Wanted, end: Literal["server", "client"], listeners: int) -> Load:
    """Return the work of one end's hosts. :raises InputError: if a worker can hold nothing."""
    watched = end == "server" and wanted.watch == "epoll"
    socket = footprint.socket_bytes(wanted.kernel, end == "server", watched)
    ports = footprint.port_bytes(wanted.kernel, CLIENT_PORTS) if end == "client" else 0
    load = Load(
        machine=wanted.server if end == "server" else wanted.client,
        socket=socket,
        common=ports + round(listeners * socket),
        nofile=wanted.nofile,
        reserve=RESERVE,
        listeners=listeners,
        floor=wanted.floor,
        spare=wanted.spare,
    )
    needs = {
        f"a {end} worker needs {RESERVE} beside its connections, and "
        f"{plural(listeners, 'listener')}": 1 + listeners,
        f"a {end}'s agent needs {RESERVE}, and one for each worker, of which there is one per "
        "core": load.machine.cores,
    }
    why = max(needs, key=lambda text: needs[text])
    if wanted.nofile < needs[why] + RESERVE:
        raise InputError(
            f"--nofile: got {count(wanted.nofile)}, expected at least "
            f"{count(needs[why] + RESERVE)}: {why}"
        )
    return load


def _limits(end: str, load: Load, others: dict[str, int] | None = None) -> dict[str, int]:
    """Return each limit's maximum for one host, the lowest first.

    :raises InputError: if a limit leaves no room for a single connection
    """
    found = {**load.limits(), **(others or {})}
    if not found["memory"]:
        least = math.ceil(load.least_ram() / 2**20)
        raise InputError(
            f"--{end}-ram: got {size(load.machine.ram)}, expected at least {count(least)} MiB: "
            f"the system, {size(load.floor)} that a run must leave free, "
            f"{plural(load.workers(1), 'worker')} and the spare need memory before the first "
            "connection"
        )
    if not found["pids"]:
        raise InputError(
            f"--{end}-cores: got {count(load.machine.cores)}, expected at most the "
            f"{count(footprint.tasks(load.machine.ram))} processes that a login may have on "
            f"{size(load.machine.ram)}: each core gets a worker"
        )
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _hosts(connections: int, limits: dict[str, int]) -> tuple[int, str]:
    """Return the number of hosts, and the limit that requires that many."""
    name, most = next(iter(limits.items()))
    hosts = -(-connections // most)
    return hosts, name if hosts > 1 else "none"


def _servers(wanted: Wanted, limits: dict[str, int]) -> tuple[int, str]:
    """Return the number of servers, and why. :raises InputError: if more are needed than wanted."""
    needed, why = _hosts(wanted.connections, limits)
    asked = wanted.servers
    if asked is None or asked == needed:
        return needed, why
    if asked < needed:
        raise InputError(
            f"--servers: got {count(asked)}, expected at least {count(needed)}: {why} lets one "
            f"server hold {plural(limits[why], 'connection')}"
        )
    if asked > wanted.connections:
        raise InputError(
            f"--servers: got {count(asked)}, expected at most one for each of the "
            f"{plural(wanted.connections, 'connection')}"
        )
    return asked, "option"


def _check_room(wanted: Wanted, servers: int, clients: int, addresses: int) -> None:
    """Check that the prefix for benchmarks has addresses for all. :raises InputError: if not."""
    start = layout.end(0, servers, wanted.addresses_per_server)
    if layout.end(start, clients, addresses) <= layout.ROOM:
        return
    helps = (
        "more --server-ports or --addresses-per-server need fewer"
        if addresses > 1
        else "hosts with more memory (--server-ram, --client-ram) need fewer"
    )
    raise InputError(
        f"--connections: {count(wanted.connections)} need "
        f"{plural(clients * addresses, 'client address')} and "
        f"{plural(servers * wanted.addresses_per_server, 'server address')}, expected no "
        f"more than {layout.PREFIX} has usable among its "
        f"{count(layout.PREFIX.num_addresses)}: {helps}"
    )


def _shares(connections: int, hosts: int) -> list[HostShare]:
    """Return an even split: shares that differ by at most one, the larger first."""
    base, more = divmod(connections, hosts)
    parts = [
        HostShare(hosts=more, connections=base + 1),
        HostShare(hosts=hosts - more, connections=base),
    ]
    return [part for part in parts if part.hosts]


def _end(
    load: Load,
    shares: list[HostShare],
    decided_by: str,
    limits: dict[str, int],
    addresses: int,
    ports: int,
) -> End:
    largest = shares[0].connections
    return End(
        hosts=sum(share.hosts for share in shares),
        decided_by=decided_by,
        limits=limits,
        shares=shares,
        cores=load.machine.cores,
        workers=load.workers(largest),
        addresses=addresses,
        ports=ports,
        ehash_entries=footprint.ehash_entries(largest),
        ehash_default=footprint.ehash_default(load.machine.ram),
        socket_bytes=round(load.socket, 1),
        ram=load.ram(largest),
    )


def _ramp(connections: int, cores: dict[Literal["servers", "clients"], int], rate: Rate) -> Ramp:
    fewer: Literal["servers", "clients"] = min(cores, key=lambda end: cores[end])
    pace = cores[fewer] * rate.per_core
    return Ramp(
        seconds=round(connections / pace, 1),
        connections_per_second=round(pace, 1),
        decided_by="both" if cores["servers"] == cores["clients"] else fewer,
        per_core=round(rate.per_core, 1),
        source=rate.source,
    )
