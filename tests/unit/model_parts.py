"""Shares, kernels and whole labs for the model, made up around the captured evidence."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from captured import collected, texts

from bench.inventory import Host, Inventory
from bench.model import capacity
from bench.model.bounds import Kernel, Room, Share
from bench.plan.topology import Topology
from bench.results import facts
from bench.results.format import HostRecord
from bench.scenario import Scenario

WHOLE = Fraction(1)


def share(**changes: Any) -> Share:
    fields: dict[str, Any] = {
        "host": "server1",
        "end": "server",
        "part": WHOLE,
        "nofile": 20_000,
        "nr_open": 1_048_576,
        "reserve": 64,
        "kernel_bytes": 3_900.0,
        "watches": 1,
    }
    return Share(**(fields | changes))


def kernel(*shares: Share, **changes: Any) -> Kernel:
    fields: dict[str, Any] = {
        "host": "server1",
        "memory": Room(20 << 30, 0),
        "files": Room(2_000_000, 0),
        "watches": Room(5_491_511, 0),
        "tasks": Room(100_000, 100),
    }
    return Kernel(shares=shares or (share(),), **(fields | changes))


CONNECTIONS = 100_000


def record(name: str, *groups: str, **sysctl: str) -> HostRecord:
    return HostRecord(
        groups=list(groups),
        kernel="6.1.0-56-cloud-amd64",
        python="3.11.2",
        cpu=2,
        mem_total_kib=990_000,
        limits={"nofile_hard": 20_000, "nofile_soft": 1_024},
        sysctl={
            "fs.file-max": "2466177",
            "fs.nr_open": "1048576",
            "fs.epoll.max_user_watches": "218824",
            **sysctl,
        },
        phases={"before": facts.phase(collected(name, "before"))},
    )


def lab(underlay: bool) -> Inventory:
    def host(name: str, group: str, first: str) -> Host:
        return Host(name, (group,), name, 22, "lab", None, None, (first,))

    hosts = {
        "server1": host("server1", "servers", "198.18.0.1"),
        "client1": host("client1", "clients", "198.18.1.1"),
        "client2": host("client2", "clients", "198.18.2.1"),
    }
    return Inventory(
        source="test",
        substrate="local",
        hosts=hosts,
        underlay=underlay,
        state=None,
        connections=None,
    )


def predict(underlay: bool, watch: Any = "epoll", tracking: bool = False, **sysctl: str) -> Any:
    hosts = {
        "server1": record("6.1", "servers", **sysctl),
        "client1": record("6.1", "clients"),
        "client2": record("6.1", "clients"),
    }
    hosts["server1"].limits["tracking"] = tracking
    evidence = {name: texts("6.1", "before") for name in hosts}
    scenario = Scenario(
        name="test", title="test", memory_floor_mib=100, watch=watch, connections=CONNECTIONS
    )
    return capacity.predict(Topology(scenario, lab(underlay)), hosts, evidence, 129_024)
