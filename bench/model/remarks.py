"""Limits that do not bound what is held, and what they do bound: a rate, data, or the closed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from bench.model.headroom import number, numbers
from bench.results.format import HostRecord
from bench.scenario import Scenario

PAGE_BYTES = 4096


class Remark(NamedTuple):
    """One such limit on one host."""

    name: str
    host: str
    value: str
    says: str


def remarks(scenario: Scenario, hosts: Mapping[str, HostRecord]) -> list[Remark]:
    """What the hosts' other limits bound in this scenario; hosts that agree are named together."""
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
                f"a listener's accept queue holds {queue:,} (the lesser of backlog and somaxconn, "
                "and one); more in one burst, before the server accepts, are dropped",
            )
        syns = number(host, "net.ipv4.tcp_max_syn_backlog")
        if syns is not None:
            yield (
                "tcp_max_syn_backlog",
                f"{syns:,}",
                "half-open connections of a listener without SYN cookies; a handshake under way",
            )
    marks = numbers(host, "net.ipv4.tcp_mem")
    if len(marks) == 3:
        yield (
            "tcp_mem",
            f"{marks[2]:,} pages",
            f"data queued in sockets: {marks[2] * PAGE_BYTES >> 20:,} MiB, a page each for "
            f"{marks[2]:,} connections with something unread; idle ones take none",
        )
    orphans = number(host, "net.ipv4.tcp_max_orphans")
    if orphans is not None:
        yield (
            "tcp_max_orphans",
            f"{orphans:,}",
            "closed sockets whose FIN is not acknowledged; more of them are reset",
        )
    waits = number(host, "net.ipv4.tcp_max_tw_buckets")
    if waits is not None:
        yield ("tcp_max_tw_buckets", f"{waits:,}", "sockets in TIME_WAIT; more are just dropped")
    buckets = int(host.limits.get("ehash_entries", 0))
    if buckets:
        load = share / buckets
        # net/ipv4/inet_hashtables.c __inet_lookup_established(): a chain is walked
        slow = ", and lookups slow down" if load > 2 else ""
        yield (
            "ehash",
            f"{buckets:,} buckets",
            f"no bound: {load:.2g} connections a bucket with {share:,}{slow}",
        )
    hashed, most = (number(host, f"net.netfilter.nf_conntrack_{x}") for x in ("buckets", "max"))
    if hashed and most and host.limits.get("tracking"):
        yield (
            "nf_conntrack_buckets",
            f"{hashed:,}",
            f"no bound: {2 * most / hashed:.2g} entries a bucket with the table full (each "
            "connection is in it for both directions)",
        )
