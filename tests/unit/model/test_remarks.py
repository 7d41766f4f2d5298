from __future__ import annotations

from runs import SCENARIO, host

from bench.model.remarks import remarks
from bench.results.format import HostRecord


def of(hosts: dict[str, HostRecord]) -> dict[tuple[str, str], str]:
    return {(one.name, one.host): one.says for one in remarks(SCENARIO, hosts)}


def test_what_other_limits_do_bound() -> None:
    server, client = host("servers"), host("clients")
    server.sysctl |= {"net.core.somaxconn": "4096", "net.ipv4.tcp_max_orphans": "9000"}
    found = of({"server1": server, "client1": client})
    assert "accept queue holds 4,097" in found["somaxconn", "server1"]
    assert ("somaxconn", "client1") not in found
    assert "2,249 MiB" in found["tcp_mem", "client1, server1"]
    assert found["tcp_max_orphans", "server1"]
    assert "0.48 connections per bucket" in found["ehash", "client1, server1"]
    assert not any(name == "nf_conntrack_buckets" for name, _ in found)


def test_a_small_hash_table_is_said_to_be_slow() -> None:
    small = host("servers")
    small.limits["ehash_entries"] = 262_144
    assert "slow down" in of({"server1": small})["ehash", "server1"]


def test_tracking_is_remarked_where_it_is_active() -> None:
    tracking = host("servers")
    tracking.sysctl |= {
        "net.netfilter.nf_conntrack_max": "262144",
        "net.netfilter.nf_conntrack_buckets": "65536",
    }
    assert ("nf_conntrack_buckets", "server1") not in of({"server1": tracking})
    tracking.limits["tracking"] = True
    found = of({"server1": tracking})
    assert found["nf_conntrack_buckets", "server1"].startswith("no bound: 8 entries per bucket")
