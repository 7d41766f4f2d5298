"""Findings from the errnos that the agents' system calls returned, and the limits behind them."""

from __future__ import annotations

from collections.abc import Iterator

from bench.diagnosis.counters import tcp_pressure
from bench.diagnosis.findings import (
    ANSWER,
    COUNTED,
    SAID,
    SIDES,
    VAGUE,
    End,
    Evidence,
    Finding,
    at_the_end,
    hosts_with,
    too_few,
)
from bench.model.catalogue import CATALOGUE
from bench.model.headroom import number
from bench.results.format import HostRecord, Measured
from bench.scenario import Scenario
from bench.units import plural

# Errno name: (bound_by, meaning), for errnos that leave no doubt.
ANSWERS = {
    "EMFILE": ("nofile", "a process had no descriptor left"),
    "ENFILE": ("fs.file-max", "the kernel had no open file left"),
    "ENOSPC": ("fs.epoll.max_user_watches", "epoll_ctl(2) refused another watch"),
}

# The same with the cure, for limits that are not in the model.
OTHERS = {
    # bind(2): not an address of this host; connect(2): the four-tuple is taken
    # (net/ipv4/af_inet.c __inet_bind, net/ipv4/inet_hashtables.c __inet_hash_connect).
    "EADDRNOTAVAIL": (
        "ports",
        "a planned source address is not on its host, or its ports to the target are taken",
        "check that alias_ips ran on the clients, add client addresses, or let TIME_WAIT pass",
    ),
    "EADDRINUSE": (
        "ports",
        "a planned source address and port was in use",
        "free the ports, or move first_client_port",
    ),
    "ENOMEM": ("memory", "the kernel had no memory for a socket", "add memory or hosts"),
    "ENOBUFS": ("memory", "the kernel had no memory for a socket", "add memory or hosts"),
    "ECONNREFUSED": (
        "refused",
        "nothing listened, or the accept queue was full with tcp_abort_on_overflow set",
        "check whether the server agent still listens",
    ),
    "ENETUNREACH": ("route", "no route to the server", "give the clients a route to it"),
    "EHOSTUNREACH": (
        "route",
        "the server did not answer on its link (ARP, neighbour table)",
        "check the data interface, and net.ipv4.neigh.default.gc_thresh3 with many addresses",
    ),
}


def answered(scenario: Scenario, measured: Measured, found: Evidence) -> Iterator[Finding]:
    """Yield findings from errnos, the servers' first: clients often only feel a server's limit."""
    errors = at_the_end(found)
    for name, (bound, meaning) in ANSWERS.items():
        for side in SIDES:
            for host, count in hosts_with(errors, side, name):
                limit = bound
                if bound == "nofile" and _nr_open_binds(scenario, found.hosts.get(host)):
                    limit = "fs.nr_open"
                # The workers run out of descriptors because fork(2) refused more workers.
                short = found.errors[side, host].get("EAGAIN", 0) if name == "EMFILE" else 0
                if short:
                    yield _forks(side, host, short, ANSWER)
                yield Finding(
                    ANSWER if not short else SAID,
                    limit,
                    f"{host}, {side}: {name} {plural(count, 'time')}, {meaning}",
                    f"raise {CATALOGUE[limit].raise_by}",
                    side,
                    host,
                )
    for side in SIDES:
        for host, count in hosts_with(found.errors, side, "EAGAIN"):
            if "EMFILE" not in errors[side, host]:  # the existing workers were enough
                yield _forks(side, host, count, COUNTED)
    for name in OTHERS:
        for side in SIDES:
            for host, count in hosts_with(errors, side, name):
                bound, meaning, cure = _other(name, scenario, found)
                seen = f"{host}, {side}: {name} {plural(count, 'time')}, {meaning}"
                few = too_few(count, scenario, measured, found)
                yield Finding(VAGUE if few else ANSWER, bound, seen, cure, side, host)


def _forks(side: End, host: str, count: int, rank: int) -> Finding:
    return Finding(
        rank,
        "pids",
        f"{host}, {side}: EAGAIN {plural(count, 'time')}, fork(2) refused another worker",
        f"raise {CATALOGUE['pids'].raise_by}",
        side,
        host,
    )


def _other(name: str, scenario: Scenario, found: Evidence) -> tuple[str, str, str]:
    """Return bound_by, meaning and cure of an errno of :data:`OTHERS` in this run."""
    bound, meaning, cure = OTHERS[name]
    pressed = tcp_pressure(found) if name in ("ENOMEM", "ENOBUFS") else None
    if pressed:
        return "tcp_mem", f"{meaning}; {': '.join(pressed)}", "raise net.ipv4.tcp_mem"
    if name == "EADDRNOTAVAIL" and scenario.source_ports == "kernel":
        limit = "ip_local_port_range"
        return limit, "connect(2) found no port left", f"raise {CATALOGUE[limit].raise_by}"
    return bound, meaning, cure


def _nr_open_binds(scenario: Scenario, host: HostRecord | None) -> bool:
    """Return whether fs.nr_open is below the agents' nofile on a host."""
    if host is None:
        return False
    most, nofile = number(host, "fs.nr_open"), host.limits.get(f"nofile_{scenario.nofile}")
    return most is not None and isinstance(nofile, int) and most < nofile
