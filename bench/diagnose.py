"""From evidence to the limit that bound the run, with a sentence of proof and one of cure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from bench.results import HostRecord, Measured, Verdict
from bench.scenario import Scenario


class Evidence(Protocol):
    """What a run has gathered."""

    @property
    def hosts(self) -> Mapping[str, HostRecord]:
        """Host name to its record with phases."""

    @property
    def errors(self) -> Mapping[str, Mapping[str, int]]:
        """``server`` or ``client`` to errno name to count."""

    @property
    def stopped_by(self) -> str:
        """Why the ramp ended: complete, lost, memory or timeout."""


@dataclass(frozen=True)
class Diagnosis:
    """The limit that bound, how one sees it, and what to do."""

    bound_by: str
    evidence: str
    cure: str
    floor: bool = False
    """Whether it is the memory floor that ended the ramp."""


def diagnose(scenario: Scenario, measured: Measured, found: Evidence) -> Diagnosis:
    """The limit that stopped the run; ``none`` where it reached what was asked.

    The stop reason comes first, then errnos from the most to the least telling, then counters.
    """
    if _reached(scenario, measured):
        return Diagnosis(
            "none",
            f"all {scenario.connections:,} connections were held",
            "ask for more connections to find the limit",
        )
    if found.stopped_by == "memory":
        return _memory(scenario, found)
    for candidate in (*_by_errno(found), *_by_counter(scenario, found)):
        return candidate
    if found.stopped_by == "timeout":
        return Diagnosis(
            "ramp_timeout_seconds",
            f"the ramp was stopped after {scenario.ramp_timeout_seconds:g} s without an error",
            "raise ramp_timeout_seconds, or max_in_flight and connect_rate",
        )
    return _unnamed(measured, found)


def verdict(scenario: Scenario, measured: Measured, diagnosis: Diagnosis) -> tuple[Verdict, str]:
    """Whether the run met its scenario's expectation, and why, in one sentence."""
    counts = measured.established
    held = min(counts.clients, counts.servers, counts.ss)
    floor = scenario.expect == "floor"
    met = (diagnosis.floor and held > 0) if floor else _reached(scenario, measured)
    if not met:
        unmet = ", memory floor not reached" if floor and not diagnosis.floor else ""
        return "fail", (
            f"{held:,} of {scenario.connections:,} connections held{unmet}, bound by "
            f"{diagnosis.bound_by}: {diagnosis.evidence}; {diagnosis.cure}"
        )
    if not counts.clients == counts.servers == counts.ss:
        return "fail", f"the three counts disagree: {_counts(measured)}"
    if measured.lost > scenario.expect_lost:
        return "fail", (
            f"{measured.lost:,} connections were lost, at most {scenario.expect_lost:,} expected"
        )
    live = measured.liveness
    if live.wrong or live.answered < live.asked or (live.mode != "none" and not live.asked):
        return "fail", (
            f"{live.answered:,} of {live.asked:,} echoes were answered, {live.wrong:,} wrongly"
        )
    if measured.left_after:
        return "fail", f"{measured.left_after:,} sockets were left after the drain"
    echoes = f", {live.answered:,} of {live.asked:,} echoes answered" if live.asked else ""
    where = f" above the memory floor of {scenario.memory_floor_mib:,} MiB" if floor else ""
    return "pass", f"{held:,} connections held by all three counts{where}{echoes}"


def _counts(measured: Measured) -> str:
    counts = measured.established
    return f"clients {counts.clients:,}, servers {counts.servers:,}, ss {counts.ss:,}"


def _reached(scenario: Scenario, measured: Measured) -> bool:
    counts = measured.established
    held = min(counts.clients, counts.servers, counts.ss)
    return held >= scenario.connections - scenario.expect_lost


def _memory(scenario: Scenario, found: Evidence) -> Diagnosis:
    least = min(
        (
            (phase.meminfo_kib["MemAvailable"], name)
            for name, host in found.hosts.items()
            if (phase := host.phases.get("peak")) and "MemAvailable" in phase.meminfo_kib
        ),
        default=None,
    )
    seen = f" ({least[1]}: MemAvailable {least[0] // 1024:,} MiB)" if least else ""
    return Diagnosis(
        "memory",
        f"really free memory fell to the floor of {scenario.memory_floor_mib:,} MiB{seen}",
        "add memory or hosts, or lower memory_floor_mib",
        floor=True,
    )


# Errno name: (bound_by, what it says, cure), from the most to the least telling.
_ERRNO: dict[str, tuple[str, str, str]] = {
    "EMFILE": (
        "nofile",
        "a process had no descriptor left",
        "raise nofile (and fs.nr_open) for the agents' user",
    ),
    "ENFILE": ("fs.file-max", "the kernel had no open file left", "raise fs.file-max"),
    "ENOSPC": (
        "fs.epoll.max_user_watches",
        "epoll_ctl(2) refused another watch",
        "raise fs.epoll.max_user_watches",
    ),
    # bind(2): not an address of this host; connect(2): the four-tuple is taken
    # (net/ipv4/af_inet.c __inet_bind, net/ipv4/inet_hashtables.c __inet_hash_connect).
    "EADDRNOTAVAIL": (
        "ports",
        "a planned source address is not on its host, or its ports to the target are taken",
        "see that alias_ips ran on the clients, add client addresses, or let TIME_WAIT pass",
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
        "see whether the server agent still listens",
    ),
    "ENETUNREACH": ("route", "no route to the server", "give the clients a route to it"),
    "EHOSTUNREACH": (
        "route",
        "the server did not answer on its link (ARP, neighbour table)",
        "check the data interface, and net.ipv4.neigh.default.gc_thresh3 with many addresses",
    ),
}


def _by_errno(found: Evidence) -> Iterator[Diagnosis]:
    for name, (bound, meaning, cure) in _ERRNO.items():
        for side in ("server", "client"):
            count = found.errors.get(side, {}).get(name, 0)
            if not count:
                continue
            seen = f"{side}: {name} {count:,} times, {meaning}"
            pressed = _tcp_pressure(found) if name in ("ENOMEM", "ENOBUFS") else ""
            if pressed:
                yield Diagnosis("tcp_mem", f"{seen}; {pressed}", "raise net.ipv4.tcp_mem")
            else:
                yield Diagnosis(bound, seen, cure)


def _by_counter(scenario: Scenario, found: Evidence) -> Iterator[Diagnosis]:
    late = found.errors.get("client", {}).get("ETIMEDOUT", 0)
    waited = f"client: ETIMEDOUT {late:,} times"
    for name, host in sorted(found.hosts.items()):
        full = _conntrack(host)
        if full:
            yield Diagnosis(
                "nf_conntrack_max",
                f"{name}: {full}" + (f"; {waited}" if late else ""),
                "raise net.netfilter.nf_conntrack_max, or do not track the data plane",
            )
    if not late:
        return
    # SNMP counters, net/ipv4/proc.c; each network namespace has its own.
    overflows = grown(found.hosts, "servers", "TcpExtListenOverflows")
    if overflows:
        yield Diagnosis(
            "backlog",
            f"{waited}, and servers' accept queues overflowed {overflows:,} times "
            "(TcpExtListenOverflows)",
            f"raise backlog ({scenario.backlog:,}) and net.core.somaxconn, or lower the rate",
        )
    syns = grown(found.hosts, "servers", "TcpExtTCPReqQFullDrop")
    if syns:
        yield Diagnosis(
            "tcp_max_syn_backlog",
            f"{waited}, and servers dropped {syns:,} SYNs (TcpExtTCPReqQFullDrop)",
            "raise net.ipv4.tcp_max_syn_backlog, or lower the rate",
        )
    drops = grown(found.hosts, "servers", "TcpExtListenDrops")
    if drops:
        yield Diagnosis(
            "backlog",
            f"{waited}, and servers' listeners dropped {drops:,} SYNs (TcpExtListenDrops)",
            "raise backlog, net.core.somaxconn and tcp_max_syn_backlog, or lower the rate",
        )
    pressed = _tcp_pressure(found)
    if pressed:
        yield Diagnosis("tcp_mem", f"{waited}; {pressed}", "raise net.ipv4.tcp_mem")
    sent = grown(found.hosts, "clients", "TcpRetransSegs")
    yield Diagnosis(
        "network",
        f"{waited}, {sent:,} segments were sent again and no server counted a drop",
        "look at the links between the hosts and at net.core.netdev_max_backlog",
    )


def _unnamed(measured: Measured, found: Evidence) -> Diagnosis:
    """No limit left a trace that is known here: say what there is."""
    counts = {
        f"{side} {name}": count
        for side, errors in sorted(found.errors.items())
        for name, count in sorted(errors.items())
        if count
    }
    if counts:
        said = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        return Diagnosis("errors", f"errors: {said}", "see raw/ and the hosts' kernel messages")
    unseen = [
        f"{name}: {host.phases['peak'].missing['ss']}"
        for name, host in sorted(found.hosts.items())
        if "peak" in host.phases and "ss" in host.phases["peak"].missing
    ]
    if unseen:
        return Diagnosis("unknown", f"ss did not count ({unseen[0]})", "make ss work there")
    seen = measured.established
    if len({seen.clients, seen.servers, seen.ss}) > 1:
        return Diagnosis(
            "unknown",
            f"the three counts disagree ({_counts(measured)}) and no error tells why",
            "see raw/ and the hosts' kernel messages",
        )
    if measured.lost:
        return Diagnosis(
            "lost",
            f"{measured.lost:,} connections were lost without an error",
            "see raw/ and the hosts' kernel messages",
        )
    return Diagnosis(
        "unknown", "no error and no counter tells why", "see raw/ and the hosts' kernel messages"
    )


def grown(hosts: Mapping[str, HostRecord], group: str, counter: str) -> int:
    """Growth of a counter from ``before`` to the last phase seen, over a group's hosts."""
    total = 0
    for host in hosts.values():
        if group in host.groups and "before" in host.phases:
            last = host.phases.get("peak") or host.phases.get("after") or host.phases["before"]
            total += max(
                0, last.nstat.get(counter, 0) - host.phases["before"].nstat.get(counter, 0)
            )
    return total


def _tcp_pressure(found: Evidence) -> str:
    """Whether TCP was short of ``tcp_mem``, in words; empty if not."""
    for name, host in sorted(found.hosts.items()):
        peak = host.phases.get("peak")
        marks = host.sysctl.get("net.ipv4.tcp_mem", "").split()
        pages = peak.sockstat.get("TCP", {}).get("mem_pages", 0) if peak else 0
        if len(marks) == 3 and pages >= int(marks[1]):
            return f"{name}: TCP was charged {pages:,} pages, pressure begins at {int(marks[1]):,}"
    for group in ("servers", "clients"):
        times = grown(found.hosts, group, "TcpExtTCPMemoryPressures")
        if times:
            return f"{group}: TCP came under memory pressure {times:,} times"
    return ""


def _conntrack(host: HostRecord) -> str:
    """Whether the host's connection tracking was full at the peak, in words; empty if not."""
    peak = host.phases.get("peak")
    if peak is None:
        return ""
    most = peak.limits.get("net.netfilter.nf_conntrack_max")
    now = peak.limits.get("net.netfilter.nf_conntrack_count")
    # The table is full within what is freed and taken while one looks.
    if isinstance(most, int) and isinstance(now, int) and most > 0 and now >= 0.99 * most:
        return f"{now:,} tracked connections of at most {most:,}"
    return ""
