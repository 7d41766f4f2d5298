"""The specs that agents receive: each agent's part of the plan, to hold or to open."""

from __future__ import annotations

from bench.inventory import Host
from bench.plan.topology import Topology
from bench.plan.tuples import Plan
from bench.wire import ClientSpec, Endpoint, ServerSpec


def server(topology: Topology, host: Host, tuples: Plan, nonce: str) -> ServerSpec:
    """Return the spec of a server: its part of these tuples."""
    scenario = topology.scenario
    listening = topology.endpoints(host)
    fronts: list[Endpoint] = []
    share = tuples.held_by(listening)
    if scenario.path == "proxied":  # the proxies choose the server
        fronts = topology.targets
        share = -(-tuples.held_by(fronts) // len(topology.servers))
    return ServerSpec(
        nonce=nonce,
        endpoints=listening,
        fronts=fronts,
        control=(listening[0][0], scenario.control_port),
        connections=share,
        backlog=scenario.backlog,
        listener=scenario.listener,
        watch=scenario.watch,
        acceptors=scenario.acceptors,
        nap_ms=scenario.accept_nap_ms,
        memory_floor_kib=scenario.memory_floor_mib * 1024,
        nofile=scenario.nofile,
        workers=scenario.processes(server=True) or 0,
        limit=scenario.expect == "limit",
    )


def client(topology: Topology, host: Host, tuples: Plan, nonce: str) -> ClientSpec:
    """Return the spec of a client: its part of these tuples, and how to open it."""
    scenario = topology.scenario
    planned = sum(
        map(tuples.share, tuples.blocks)
    )  # in a search for a limit, maybe fewer than requested
    share = tuples.share(host.name) / planned
    return ClientSpec(
        nonce=nonce,
        controls=topology.controls,
        fronts=topology.fronts,
        routers=topology.translated,
        blocks=list(tuples.blocks[host.name]),
        max_in_flight=scenario.max_in_flight,
        connect_rate=(scenario.connect_rate or 0.0) * share,
        connect_timeout_ms=scenario.connect_timeout_ms,
        retries=scenario.retries,
        backoff_ms=scenario.backoff_ms,
        active=scenario.active_workers,
        memory_floor_kib=scenario.memory_floor_mib * 1024,
        nofile=scenario.nofile,
        workers=scenario.processes(server=False) or 0,
        source_ports=scenario.source_ports,
        limit=scenario.expect == "limit",
    )
