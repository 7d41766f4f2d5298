"""One run of the connection engine, with agents and wire as in any run, and its measured ramp."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.agent import bundle
from bench.errors import LabError
from bench.hosts.agent import Agent
from bench.hosts.session import Connect, Session
from bench.inventory import Host
from bench.perf.pairs import Figure, cpu_ns
from bench.plan.tuples import plan
from bench.scenario import Scenario
from bench.wire import ClientSpec, ServerSpec

PATIENCE = 600.0
FLOOR_KIB = 128 << 10
"""The memory floor. It is low because :mod:`bench.perf.memory` holds the free memory."""


@dataclass(frozen=True)
class Measured:
    """One run of the engine."""

    figure: Figure
    userland_bytes: dict[str, float]
    """PSS that the connections added, per connection of each role, bytes."""
    worker_mib: dict[str, float]
    """PSS per process before the first connection, MiB."""


def run_engine(
    connect: Connect, server: Host, clients: Sequence[Host], scenario: Scenario
) -> Measured:
    """Open and drain the scenario's connections. :raises LabError: if one is lost."""
    wanted = scenario.connections
    endpoint = (server.data_addresses[0], scenario.server_ports[0])
    control = (endpoint[0], scenario.control_port)
    tuples = plan(
        wanted,
        {host.name: host.data_addresses for host in clients},
        [endpoint],
        scenario.first_client_port,
        scenario.last_client_port,
    )
    nonce = secrets.token_hex(16)
    with Session(connect, bundle.build().data) as session:
        pids = _start(session, server, clients)
        told: ServerSpec = {
            "nonce": nonce,
            "endpoints": [endpoint],
            "fronts": [],
            "control": control,
            "connections": wanted,
            "backlog": scenario.backlog,
            "listener": scenario.listener,
            "watch": scenario.watch,
            "acceptors": scenario.acceptors,
            "nap_ms": scenario.accept_nap_ms,
            "memory_floor_kib": FLOOR_KIB,
            "nofile": scenario.nofile,
            "workers": scenario.workers or 0,
            "limit": False,
        }
        agents = session.agents
        session.ask(agents[:1], "serve", "serving", PATIENCE, spec=told)
        for agent in agents[1:]:
            spec: ClientSpec = {
                "nonce": nonce,
                "controls": [control],
                "fronts": [],
                "routers": [],
                "blocks": list(tuples.blocks[agent.name]),
                "max_in_flight": scenario.max_in_flight,
                "connect_rate": 0.0,
                "connect_timeout_ms": scenario.connect_timeout_ms,
                "retries": scenario.retries,
                "backoff_ms": scenario.backoff_ms,
                "active": scenario.active_workers,
                "memory_floor_kib": FLOOR_KIB,
                "nofile": scenario.nofile,
                "workers": scenario.workers or 0,
                "source_ports": scenario.source_ports,
                "limit": False,
            }
            agent.tell({"op": "prepare", "spec": spec})
        session.gather(agents[1:], "prepared", PATIENCE)
        session.ask(agents[:1], "open", "opened", PATIENCE)
        before = _pss(session)
        used = _cpu(agents, pids)
        began = time.monotonic()
        ended = session.ask(agents[1:], "ramp", "ramped", PATIENCE)
        seconds = time.monotonic() - began
        used = _cpu(agents, pids) - used
        held = sum(int(message["held"]) for message in ended.values())
        if held != wanted:
            raise LabError(f"the engine holds {held} of {wanted}: {list(ended.values())}")
        after = _pss(session)
        session.ask(agents[1:], "drain", "drained", PATIENCE, how="rst", rate=0)
        session.ask(agents[:1], "drain", "drained", PATIENCE, how="rst", rate=0)
    figure = Figure(wanted, seconds, used / 1000 / wanted)
    grown = {role: (after[role][0] - before[role][0]) * 1024 / wanted for role in before}
    fixed = {role: before[role][0] / before[role][1] / 1024 for role in before}
    return Measured(figure, grown, fixed)


def _start(session: Session, server: Host, clients: Sequence[Host]) -> list[int]:
    pids: dict[str, int] = {}
    # The session does not pass on hello, so the agent's pid is asked for on the host.
    session.start([(server, "server"), *((host, "client") for host in clients)])
    for agent in session.agents:
        found = agent.link.run(["pgrep", "-f", "-o", f"python3 {agent.path}"])
        pids[agent.name] = int(found)
    return [pids[agent.name] for agent in session.agents]


def _cpu(agents: Sequence[Agent], pids: Sequence[int]) -> int:
    return sum(cpu_ns(agent.link, [pid]) for agent, pid in zip(agents, pids, strict=True))


def _pss(session: Session) -> dict[str, tuple[int, int]]:
    """Return role to (PSS of its processes, KiB; their number)."""
    told = session.ask(session.agents, "collect", "collected", PATIENCE, phase="perf", count=None)
    found: dict[str, tuple[int, int]] = {}
    for agent, message in told.items():
        pss, count = found.get(agent.role, (0, 0))
        found[agent.role] = (pss + message["pss_kib"], count + message["workers"] + 1)
    return found


def settled(connect: Connect, hosts: Sequence[Host]) -> None:
    """Wait until the sockets of the last run are gone from every host."""
    for host in hosts:
        with contextlib.closing(connect(host)) as link:
            ends = time.monotonic() + 30
            while time.monotonic() < ends:
                text = link.run(["cat", "/proc/net/sockstat"])
                if int(text.split("TCP: inuse ")[1].split()[0]) < 100:
                    break
                time.sleep(0.2)
    time.sleep(1)  # for objects that the kernel frees after a grace period (RCU)
