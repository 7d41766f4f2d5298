"""From evidence to the limit that bound: on which host, how sure, what shows it, what cures it.

Every source is asked for what it shows (:class:`Finding`); the most direct finding names the
limit, and all others that name the same one stand beside it. Direct is what the kernel itself
answered or wrote; a counter that fits a time-out is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from bench.catalogue import CATALOGUE
from bench.collect import kernellog
from bench.results import Diagnosis, HostRecord, Measured, Phase, Predicted, Step
from bench.scenario import Scenario

End = Literal["server", "client", "both", "path", ""]
SIDES: tuple[End, End] = ("server", "client")

Errors = Mapping[tuple[str, str], Mapping[str, int]]
"""(``server`` or ``client``, host) to errno name to count."""


class Floor(NamedTuple):
    """The agent that came to its memory floor."""

    host: str
    end: End
    free_kib: int
    """Memory that was really free then."""


class Evidence(Protocol):
    """What a run has gathered."""

    @property
    def hosts(self) -> Mapping[str, HostRecord]:
        """Host name to its record with phases."""

    @property
    def errors(self) -> Errors:
        """What system calls of the agents answered."""

    @property
    def steps(self) -> Sequence[Step]:
        """Of a ramp that looked for its limit."""

    @property
    def floor(self) -> Floor | None:
        """Whose memory fell to the floor first; None if nobody's did."""

    @property
    def predicted(self) -> Predicted | None:
        """What the model expected."""

    @property
    def stopped_by(self) -> str:
        """Why the ramp ended: complete, lost, limit, memory or timeout."""


FLOOR, ANSWER, SAID, COUNTED, VAGUE = range(5)
"""How direct a finding is: the floor that ended the ramp; what a system call answered that only
one limit can make it answer; what the kernel wrote or shows as full; what a counter suggests; what
only says that something failed."""

TELLING_PART = 0.01
"""Of the connections that are missing: an errno that many limits give and that was met less often
than that has not stopped the run."""


@dataclass(frozen=True)
class Finding:
    """What one source shows."""

    rank: int
    bound_by: str
    evidence: str
    cure: str
    end: End = ""
    host: str = ""


def diagnose(scenario: Scenario, measured: Measured, found: Evidence) -> Diagnosis:
    """The limit that stopped the run; ``none`` where it reached what was asked."""
    if reached(scenario, measured) or (
        scenario.expect == "limit" and found.stopped_by == "complete"
    ):
        return _all_held(scenario, found)
    findings = sorted(_findings(scenario, measured, found), key=lambda one: one.rank)
    first = findings[0]
    agreeing = [one for one in findings if one.bound_by == first.bound_by]
    if first.rank <= ANSWER or (len(agreeing) > 1 and first.rank <= SAID):
        sure: Literal["certain", "likely", "unsure"] = "certain"
    else:
        sure = "likely" if first.rank < VAGUE else "unsure"
    return Diagnosis(
        bound_by=first.bound_by,
        end=first.end,
        host=first.host,
        sure=sure,
        evidence=list(dict.fromkeys(one.evidence for one in agreeing)),
        cure=first.cure,
    )


def _all_held(scenario: Scenario, found: Evidence) -> Diagnosis:
    """All that was asked for: no limit bound, unless there was nothing more to ask for."""
    planned = found.predicted.limits.get("tuples") if found.predicted else None
    # Who looks for a limit is given as many as there are.
    if scenario.expect == "limit" and planned is not None and scenario.connections >= planned:
        return Diagnosis(
            bound_by="tuples",
            end="path",
            sure="certain",
            evidence=[f"all {planned:,} four-tuples that addresses and ports allow were used"],
            cure=f"add {CATALOGUE['tuples'].raise_by}",
        )
    return Diagnosis(
        bound_by="none",
        sure="certain",
        evidence=[f"all {scenario.connections:,} connections were held"],
        cure="ask for more connections to find the limit",
    )


def reached(scenario: Scenario, measured: Measured) -> bool:
    """Whether all that was asked for was held, by all three counts."""
    counts = measured.established
    held = min(counts.clients, counts.servers, counts.ss)
    return held >= scenario.connections - scenario.expect_lost


def _findings(scenario: Scenario, measured: Measured, found: Evidence) -> Iterator[Finding]:
    if found.stopped_by == "memory":
        yield _floor(scenario, found)
    yield from _answers(scenario, measured, found)
    for name, host in sorted(found.hosts.items()):
        yield from _said(name, host)
    yield from _counted(scenario, measured, found)
    if found.stopped_by == "timeout":
        yield Finding(
            COUNTED,
            "ramp_timeout_seconds",
            f"the ramp was stopped after {scenario.ramp_timeout_seconds:g} s",
            "raise ramp_timeout_seconds, or max_in_flight and connect_rate",
        )
    yield _unnamed(measured, found)


def _floor(scenario: Scenario, found: Evidence) -> Finding:
    said = f"really free memory fell to the floor of {scenario.memory_floor_mib:,} MiB"
    cure = "add memory or hosts, or lower memory_floor_mib"
    first = found.floor
    if first is None:  # the clients stopped just short of it
        return Finding(FLOOR, "memory", said, cure)
    seen = f"{first.host}: {said} ({first.free_kib >> 10:,} MiB left)"
    return Finding(FLOOR, "memory", seen, cure, first.end, first.host)


# Errno name: (bound_by, what it says), where the answer leaves no doubt.
_ANSWERS = {
    "EMFILE": ("nofile", "a process had no descriptor left"),
    "ENFILE": ("fs.file-max", "the kernel had no open file left"),
    "ENOSPC": ("fs.epoll.max_user_watches", "epoll_ctl(2) refused another watch"),
}

# The same where the limit is not one of the model's: with the cure.
_OTHERS = {
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


def _answers(scenario: Scenario, measured: Measured, found: Evidence) -> Iterator[Finding]:
    """What system calls answered, the server's first: a client that waits for it only echoes it."""
    errors = _at_the_end(found)
    for name, (bound, meaning) in _ANSWERS.items():
        for side in SIDES:
            for host, count in _hosts_with(errors, side, name):
                limit = bound
                if bound == "nofile" and _nr_open_binds(scenario, found.hosts.get(host)):
                    limit = "fs.nr_open"
                # Workers run out of descriptors because there are no more of them.
                short = found.errors[side, host].get("EAGAIN", 0) if name == "EMFILE" else 0
                if short:
                    yield _forks(side, host, short, ANSWER)
                yield Finding(
                    ANSWER if not short else SAID,
                    limit,
                    f"{host}, {side}: {name} {count:,} times, {meaning}",
                    f"raise {CATALOGUE[limit].raise_by}",
                    side,
                    host,
                )
    for side in SIDES:
        for host, count in _hosts_with(found.errors, side, "EAGAIN"):
            if "EMFILE" not in errors[side, host]:  # those workers that there are were enough
                yield _forks(side, host, count, COUNTED)
    for name in _OTHERS:
        for side in SIDES:
            for host, count in _hosts_with(errors, side, name):
                bound, meaning, cure = _other(name, scenario, found)
                seen = f"{host}, {side}: {name} {count:,} times, {meaning}"
                few = _too_few(count, scenario, measured, found)
                yield Finding(VAGUE if few else ANSWER, bound, seen, cure, side, host)


def _too_few(count: int, scenario: Scenario, measured: Measured, found: Evidence) -> bool:
    """Whether an errno was met too rarely to have stopped the run.

    Who looks for a limit is told by the last step; others by the whole ramp.
    """
    counts = measured.established
    missing = scenario.connections - min(counts.clients, counts.servers, counts.ss)
    return not found.steps and count < TELLING_PART * missing


def _forks(side: End, host: str, count: int, rank: int) -> Finding:
    return Finding(
        rank,
        "pids",
        f"{host}, {side}: EAGAIN {count:,} times, fork(2) was refused another worker",
        f"raise {CATALOGUE['pids'].raise_by}",
        side,
        host,
    )


def _at_the_end(found: Evidence) -> Errors:
    """Errors by side and host; of a ramp in steps, only those that its last step met as well.

    What an earlier step met, a later one got past.
    """
    if not found.steps:
        return found.errors
    last = found.steps[-1].errors
    return {
        end: {name: count for name, count in of.items() if name in last}
        for end, of in found.errors.items()
    }


def _other(name: str, scenario: Scenario, found: Evidence) -> tuple[str, str, str]:
    """What an errno of :data:`_OTHERS` means in this run: bound_by, what it says, cure."""
    bound, meaning, cure = _OTHERS[name]
    pressed = _tcp_pressure(found) if name in ("ENOMEM", "ENOBUFS") else ""
    if pressed:
        return "tcp_mem", f"{meaning}; {pressed}", "raise net.ipv4.tcp_mem"
    if name == "EADDRNOTAVAIL" and scenario.source_ports == "kernel":
        limit = "ip_local_port_range"
        return limit, "connect(2) found no port left", f"raise {CATALOGUE[limit].raise_by}"
    return bound, meaning, cure


def _hosts_with(errors: Errors, side: str, name: str) -> Iterator[tuple[str, int]]:
    """Hosts whose agent of that side met an errno, those that met it most often first."""
    met = [(of[name], host) for (end, host), of in errors.items() if end == side and of.get(name)]
    for count, host in sorted(met, key=lambda one: (-one[0], one[1])):
        yield host, count


def _nr_open_binds(scenario: Scenario, host: HostRecord | None) -> bool:
    """Whether fs.nr_open is below the agents' nofile on a host."""
    if host is None:
        return False
    most, nofile = host.sysctl.get("fs.nr_open", ""), host.limits.get(f"nofile_{scenario.nofile}")
    return most.isdigit() and isinstance(nofile, int) and int(most) < nofile


def _said(name: str, host: HostRecord) -> Iterator[Finding]:
    """What the host's kernel wrote, or shows as full."""
    before, peak = host.phases.get("before"), host.phases.get("peak")
    end = _end_of(host)
    if before is None or peak is None:
        return
    for bound, lines in kernellog.fresh(before.kernel_log, peak.kernel_log).items():
        raising = CATALOGUE[bound].raise_by if bound in CATALOGUE else _BY_MESSAGE.get(bound, bound)
        times = f" ({len(lines)} such messages)" if len(lines) > 1 else ""
        # SYN flooding is a warning that comes long before anything is lost.
        rank = COUNTED if bound == "backlog" else SAID
        yield Finding(
            rank,
            bound,
            f"{name}, kernel: {lines[-1].strip()!r}{times}",
            f"raise {raising}" if bound != "link" else "look at the link",
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
                    f"{name}: cgroup {group} met its limit {gained:,} times ({event})",
                    f"raise {CATALOGUE[bound].raise_by}",
                    end,
                    name,
                )


def _full(host: HostRecord, peak: Phase) -> Iterator[tuple[str, str]]:
    """What the host shows as used up: (limit, in words)."""
    most, open_now = peak.limits.get("fs.file-max"), str(peak.limits.get("fs.file-nr", "")).split()
    if isinstance(most, int) and open_now and int(open_now[0]) >= 0.99 * most:
        yield "fs.file-max", f"{int(open_now[0]):,} files open of at most {most:,}"
    orphans = peak.sockstat.get("TCP", {}).get("orphan", 0)
    allowed = host.sysctl.get("net.ipv4.tcp_max_orphans", "")
    if allowed.isdigit() and orphans >= int(allowed) > 0:
        yield "tcp_max_orphans", f"{orphans:,} orphaned sockets of at most {int(allowed):,}"


_BY_MESSAGE = {
    "tcp_mem": "net.ipv4.tcp_mem",
    "tcp_max_orphans": "net.ipv4.tcp_max_orphans",
    "backlog": "backlog and net.core.somaxconn",
    "gc_thresh3": "net.ipv4.neigh.default.gc_thresh3",
}


def _counted(scenario: Scenario, measured: Measured, found: Evidence) -> Iterator[Finding]:
    """What counters suggest of connects that ran out of time."""
    late = sum(count for _, count in _hosts_with(_at_the_end(found), "client", "ETIMEDOUT"))
    if not late:
        return
    waited = f"clients: ETIMEDOUT {late:,} times"
    rank = VAGUE if _too_few(late, scenario, measured, found) else COUNTED
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
                    f"{waited}; {name}, server: {what} {gained:,} times ({counter})",
                    cure,
                    "server",
                    name,
                )
    pressed = _tcp_pressure(found)
    if pressed:
        told = True
        yield Finding(rank, "tcp_mem", f"{waited}; {pressed}", "raise net.ipv4.tcp_mem")
    if not told:
        sent = grown(found.hosts, "clients", "TcpExtTCPSynRetrans")
        yield Finding(
            VAGUE,
            "network",
            f"{waited}, {sent:,} SYNs were sent again and no server counted a drop",
            "look at the links between the hosts and at net.core.netdev_max_backlog",
            "path",
        )


def _unnamed(measured: Measured, found: Evidence) -> Finding:
    """No limit left a trace that is known here: say what there is."""
    cure = "see raw/ and the hosts' kernel messages"
    counts = {
        f"{host}, {side}: {name}": count
        for (side, host), errors in sorted(found.errors.items())
        for name, count in sorted(errors.items())
        if count
    }
    if counts:
        said = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        return Finding(VAGUE, "errors", said, cure)
    unseen = [
        f"{name}: {host.phases['peak'].missing['ss']}"
        for name, host in sorted(found.hosts.items())
        if "peak" in host.phases and "ss" in host.phases["peak"].missing
    ]
    if unseen:
        return Finding(VAGUE, "unknown", f"ss did not count ({unseen[0]})", "make ss work there")
    seen = measured.established
    if len({seen.clients, seen.servers, seen.ss}) > 1:
        said = f"clients {seen.clients:,}, servers {seen.servers:,}, ss {seen.ss:,}"
        return Finding(
            VAGUE, "unknown", f"the three counts disagree ({said}) and no error tells why", cure
        )
    if measured.lost:
        lost = f"{measured.lost:,} connections were lost without an error"
        return Finding(VAGUE, "lost", lost, cure)
    return Finding(VAGUE, "unknown", "no error and no counter tells why", cure)


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


def _end_of(host: HostRecord) -> End:
    sides = [side for side in SIDES if f"{side}s" in host.groups]
    if len(sides) != 1:
        return "both" if sides else ""
    return sides[0]


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
    before, peak = host.phases.get("before"), host.phases.get("peak")
    if before is None or peak is None:
        return ""
    dropped = peak.conntrack.get("drop", 0) - before.conntrack.get("drop", 0)
    most = peak.limits.get("net.netfilter.nf_conntrack_max")
    now = peak.limits.get("net.netfilter.nf_conntrack_count")
    if not (isinstance(most, int) and isinstance(now, int) and most > 0):
        return ""
    # The table is full within what is freed and taken while one looks. Packets are dropped for
    # other reasons as well: that counts where the table is nearly full.
    if now < (0.9 if dropped > 0 else 0.99) * most:
        return ""
    drops = f", {dropped:,} packets dropped for that" if dropped > 0 else ""
    return f"{now:,} tracked connections of at most {most:,}{drops}"
