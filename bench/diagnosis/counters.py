"""Findings from kernel messages, full tables and counters, and the limits behind them."""

from __future__ import annotations

from collections.abc import Iterator

from bench.collect import kernellog
from bench.diagnosis.findings import (
    COUNTED,
    SAID,
    SIDES,
    VAGUE,
    End,
    Evidence,
    Finding,
    at_the_end,
    grown,
    hosts_with,
    too_few,
)
from bench.model.catalogue import CATALOGUE
from bench.model.headroom import number, numbers
from bench.results.format import HostRecord, Measured, Phase
from bench.scenario import Scenario
from bench.units import plural, whole


def said(name: str, host: HostRecord) -> Iterator[Finding]:
    """Yield findings from the messages of a host's kernel and from limits that are used up."""
    before, peak = host.phases.get("before"), host.phases.get("peak")
    end = _end_of(host)
    if before is None or peak is None:
        return
    for bound, lines in kernellog.fresh(before.kernel_log, peak.kernel_log).items():
        raising = CATALOGUE[bound].raise_by if bound in CATALOGUE else _BY_MESSAGE.get(bound, bound)
        times = f" ({len(lines)} such messages)" if len(lines) > 1 else ""
        # The kernel warns of SYN flooding long before anything is lost.
        rank = COUNTED if bound == "backlog" else SAID
        yield Finding(
            rank,
            bound,
            f"{name}, kernel: {lines[-1].strip()!r}{times}",
            f"raise {raising}" if bound != "link" else "check the link",
            end,
            name,
        )
    full = _conntrack(host)
    if full:
        yield Finding(
            SAID,
            "nf_conntrack_max",
            f"{name}: {full}",
            f"raise {CATALOGUE['nf_conntrack_max'].raise_by}",
            end,
            name,
        )
    for bound, seen in _full(host, peak):
        raising = CATALOGUE[bound].raise_by if bound in CATALOGUE else _BY_MESSAGE[bound]
        yield Finding(SAID, bound, f"{name}: {seen}", f"raise {raising}", end, name)
    for group, figures in peak.cgroups.items():
        was = before.cgroups.get(group, {})
        for event, bound in (("pids.events:max", "pids"), ("memory.events:max", "memory.max")):
            gained = figures.get(event, 0) - was.get(event, 0)
            if gained > 0:
                yield Finding(
                    SAID,
                    bound,
                    f"{name}: cgroup {group} reached its limit {plural(gained, 'time')} ({event})",
                    f"raise {CATALOGUE[bound].raise_by}",
                    end,
                    name,
                )


def _full(host: HostRecord, peak: Phase) -> Iterator[tuple[str, str]]:
    """Yield the limits that the host shows as used up: (limit, in words)."""
    most = peak.limits.get("fs.file-max")
    open_now = whole(" ".join(str(peak.limits.get("fs.file-nr", "")).split()[:1]))
    if isinstance(most, int) and open_now is not None and open_now >= 0.99 * most:
        yield "fs.file-max", f"{open_now:,} of at most {plural(most, 'file')} open"
    orphans = peak.sockstat.get("TCP", {}).get("orphan", 0)
    allowed = number(host, "net.ipv4.tcp_max_orphans")
    if allowed is not None and orphans >= allowed > 0:
        yield "tcp_max_orphans", f"{orphans:,} of at most {plural(allowed, 'orphaned socket')}"


_BY_MESSAGE = {
    "tcp_mem": "net.ipv4.tcp_mem",
    "tcp_max_orphans": "net.ipv4.tcp_max_orphans",
    "backlog": "backlog and net.core.somaxconn",
    "gc_thresh3": "net.ipv4.neigh.default.gc_thresh3",
}


def counted(scenario: Scenario, measured: Measured, found: Evidence) -> Iterator[Finding]:
    """Yield what the counters suggest about connects that timed out."""
    late = sum(count for _, count in hosts_with(at_the_end(found), "client", "ETIMEDOUT"))
    if not late:
        return
    waited = f"clients: ETIMEDOUT {plural(late, 'time')}"
    rank = VAGUE if too_few(late, scenario, measured, found) else COUNTED
    # SNMP counters, net/ipv4/proc.c; each network namespace has its own.
    drops = {
        "TcpExtListenOverflows": (
            "backlog",
            "accept queues overflowed",
            f"raise backlog ({scenario.backlog:,}) and net.core.somaxconn, or lower the rate",
        ),
        "TcpExtTCPReqQFullDrop": (
            "tcp_max_syn_backlog",
            "SYNs were dropped",
            "raise net.ipv4.tcp_max_syn_backlog, or lower the rate",
        ),
        "TcpExtListenDrops": (
            "backlog",
            "listeners dropped SYNs",
            "raise backlog, net.core.somaxconn and tcp_max_syn_backlog, or lower the rate",
        ),
    }
    told = False
    for counter, (bound, what, cure) in drops.items():
        for name, host in sorted(found.hosts.items()):
            gained = grown({name: host}, "servers", counter)
            if gained:
                told = True
                yield Finding(
                    rank,
                    bound,
                    f"{waited}; {name}, server: {what} {plural(gained, 'time')} ({counter})",
                    cure,
                    "server",
                    name,
                )
    pressed = tcp_pressure(found)
    if pressed:
        told = True
        name, seen = pressed
        end = _end_of(found.hosts[name])
        cure = "raise net.ipv4.tcp_mem"
        yield Finding(rank, "tcp_mem", f"{waited}; {name}: {seen}", cure, end, name)
    if not told:
        sent = grown(found.hosts, "clients", "TcpExtTCPSynRetrans")
        yield Finding(
            VAGUE,
            "network",
            f"{waited}, {plural(sent, 'SYN')} retransmitted, and no server counted a drop",
            "check the links between the hosts and net.core.netdev_max_backlog",
            "path",
        )


def tcp_pressure(found: Evidence) -> tuple[str, str] | None:
    """Return a host whose TCP was short of ``tcp_mem``, and the evidence; None if there is none."""
    for name, host in sorted(found.hosts.items()):
        peak = host.phases.get("peak")
        marks = numbers(host, "net.ipv4.tcp_mem")
        pages = peak.sockstat.get("TCP", {}).get("mem_pages", 0) if peak else 0
        if len(marks) == 3 and pages >= marks[1]:
            return name, f"TCP uses {plural(pages, 'page')}, pressure begins at {marks[1]:,}"
        times = sum(grown({name: host}, group, "TcpExtTCPMemoryPressures") for group in host.groups)
        if times:
            return name, f"TCP came under memory pressure {plural(times, 'time')}"
    return None


def _conntrack(host: HostRecord) -> str:
    """Return in words that a host's connection tracking was full at the peak; empty if not."""
    before, peak = host.phases.get("before"), host.phases.get("peak")
    if before is None or peak is None:
        return ""
    dropped = peak.conntrack.get("drop", 0) - before.conntrack.get("drop", 0)
    most = peak.limits.get("net.netfilter.nf_conntrack_max")
    now = peak.limits.get("net.netfilter.nf_conntrack_count")
    if not (isinstance(most, int) and isinstance(now, int) and most > 0):
        return ""
    # A full table may show a little room, because entries come and go during the look at it.
    # Packets are dropped for other reasons too: drops count only if the table is nearly full.
    if now < (0.9 if dropped > 0 else 0.99) * most:
        return ""
    drops = f", {plural(dropped, 'packet')} dropped" if dropped > 0 else ""
    return f"{now:,} of at most {plural(most, 'connection')} tracked{drops}"


def _end_of(host: HostRecord) -> End:
    sides = [side for side in SIDES if f"{side}s" in host.groups]
    if len(sides) != 1:
        return "both" if sides else ""
    return sides[0]
