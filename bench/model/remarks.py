"""Limits that do not bound held connections but a rate, data, or closed connections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from bench.model.headroom import number, numbers
from bench.results.format import HostRecord
from bench.scenario import Scenario
from bench.units import plural

PAGE_BYTES = 4096


class Remark(NamedTuple):
    """One such limit on the hosts that have the same value."""

    name: str
    host: str
    value: str
    says: str


def remarks(scenario: Scenario, hosts: Mapping[str, HostRecord]) -> list[Remark]:
    """Return what the hosts' other limits bound in this scenario, one row for hosts that agree."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for name, host in sorted(hosts.items()):
        for key, value, says in _of(scenario, host):
            alike.setdefault((key, value, says), []).append(name)
    return [
        Remark(key, ", ".join(names), value, says) for (key, value, says), names in alike.items()
    ]


def _of(scenario: Scenario, host: HostRecord) -> Iterator[tuple[str, str, str]]:
    servers = "servers" in host.groups
    share = scenario.connections
    if servers:
        most = number(host, "net.core.somaxconn")
        if most is not None:
            # net/socket.c __sys_listen(); include/net/sock.h sk_acceptq_is_full(): more than
            queue = min(most, scenario.backlog) + 1
            yield (
                "somaxconn",
                f"{most:,}",
                f"a listener's accept queue holds {plural(queue, 'connection')} (the lesser of "
                "backlog and somaxconn, plus one); a larger burst overflows it before the "
                "server accepts",
            )
        syns = number(host, "net.ipv4.tcp_max_syn_backlog")
        if syns is not None:
            yield (
                "tcp_max_syn_backlog",
                f"{syns:,}",
                "half-open connections (handshakes in progress) of a listener without SYN cookies",
            )
    marks = numbers(host, "net.ipv4.tcp_mem")
    if len(marks) == 3:
        yield (
            "tcp_mem",
            f"{marks[2]:,} pages",
            f"data queued in sockets: {marks[2] * PAGE_BYTES >> 20:,} MiB, one page each for "
            f"{plural(marks[2], 'connection')} with unread data; idle connections take none",
        )
    orphans = number(host, "net.ipv4.tcp_max_orphans")
    if orphans is not None:
        yield (
            "tcp_max_orphans",
            f"{orphans:,}",
            "closed sockets whose FIN is not acknowledged; sockets beyond the limit are reset",
        )
    waits = number(host, "net.ipv4.tcp_max_tw_buckets")
    if waits is not None:
        yield (
            "tcp_max_tw_buckets",
            f"{waits:,}",
            "sockets in TIME_WAIT; beyond the limit a socket skips TIME_WAIT and is closed",
        )
    buckets = int(host.limits.get("ehash_entries", 0))
    if buckets:
        load = share / buckets
        # net/ipv4/inet_hashtables.c __inet_lookup_established(): a chain is walked
        slow = ", and lookups slow down" if load > 2 else ""
        yield (
            "ehash",
            plural(buckets, "bucket"),
            f"no bound: {load:.2g} connections per bucket with {share:,}{slow}",
        )
    hashed, most = (number(host, f"net.netfilter.nf_conntrack_{x}") for x in ("buckets", "max"))
    if hashed and most and host.limits.get("tracking"):
        yield (
            "nf_conntrack_buckets",
            f"{hashed:,}",
            f"no bound: {2 * most / hashed:.2g} entries per bucket in a full table (each "
            "connection has an entry for each direction)",
        )
