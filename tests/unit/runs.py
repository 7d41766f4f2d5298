"""Runs built from captured numbers: whole, stopped by a limit, ended before it began."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from captured import HELD, collected

from bench.results import cost, facts
from bench.results.format import (
    CurvePoint,
    Established,
    HostRecord,
    KernelBytes,
    Latency,
    Liveness,
    Measured,
    Phase,
    Predicted,
    Requested,
    Run,
    Setting,
    UserlandBytes,
    Workers,
)
from bench.scenario import Scenario

STARTED = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
SCENARIO = Scenario(name="million", title="One million connections to one address and port")


def phases(kernel: str = "6.18", scale: int = 1, **peak: Any) -> dict[str, Phase]:
    """Captured phases, with slab growth of ``scale`` times as many connections."""
    made = {p: facts.phase(collected(kernel, p), STARTED) for p in ("before", "peak", "after")}
    before, top = made["before"], made["peak"]
    top = top.model_copy(
        update={
            "held": HELD[kernel] * scale,
            "established": HELD[kernel] * scale,
            "slab_bytes": {
                name: before.slab_bytes.get(name, 0)
                + scale * (size - before.slab_bytes.get(name, 0))
                for name, size in top.slab_bytes.items()
                if size * scale >= (scale - 1) * before.slab_bytes.get(name, 0)
            },
            "slab_objects": {
                name: before.slab_objects.get(name, 0)
                + scale * (number - before.slab_objects.get(name, 0))
                for name, number in top.slab_objects.items()
            },
            **peak,
        }
    )
    return {"before": before, "peak": top, "hold_end": top, "after": made["after"]}


def host(*groups: str, kernel: str = "6.18", scale: int = 1, **peak: Any) -> HostRecord:
    return HostRecord(
        groups=list(groups),
        kernel={"5.10": "5.10.0-32-cloud-amd64", "6.1": "6.1.0-56-cloud-amd64"}.get(
            kernel, "6.18.44"
        ),
        python="3.11.2",
        cpu=2,
        mem_total_kib=24_684_092,
        limits={
            "nofile_soft": 20_000,
            "nofile_hard": 20_000,
            "cap_sys_resource": False,
            "ehash_entries": 2_097_152,
        },
        sysctl={
            "fs.file-max": "4000000",
            "net.core.somaxconn": "65535",
            "net.ipv4.tcp_mem": "287901 383868 575802",
        },
        addresses=["198.18.0.1", "fd63:6f6e:6e6c::1"],
        tuning={
            "tune_sysctl": {
                "fs.epoll.max_user_watches": Setting(
                    found="5491511", set="5491511", where="underlay"
                ),
                "fs.file-max": Setting(found="2466177", set="4000000", where="underlay"),
                "net.core.somaxconn": Setting(found="4096", set="65535"),
                "net.ipv4.ip_local_port_range": Setting(found="32768\t60999", set="1024 65535"),
                "net.ipv4.tcp_rmem": Setting(found="4096 131072 6291456", set="4096 4096 16384"),
            },
            "tune_limits": {"nofile": Setting(found="1024:20000", set="20000:20000")},
        },
        reported={"net.core.netdev_max_backlog": "read-only file system"},
        phases=phases(kernel, scale, **peak),
    )


def curve(target: int, seconds: int, hold: int, per_connection: float = 8_200) -> list[CurvePoint]:
    """A ramp that slows a little, then a plateau: one point a second."""
    points = []
    for second in range(seconds + hold + 1):
        share = min(1.0, second / seconds)
        held = int(target * (1.12 * share - 0.12 * share**2))
        last = points[-1].held if points else 0
        slab = 150_000 + int(held * per_connection / 1024)
        points.append(
            CurvePoint(
                t=float(second),
                held=held,
                rate=float(held - last),
                p99_us=0 if not second else 2_600 + 37 * (second * 7 % 11) + 20 * second,
                mem_available_kib=24_300_000 - int(0.8 * (slab - 150_000)),
                slab_kib=slab,
            )
        )
    return points


def million() -> Run:
    """A run that met its expectation, on one kernel."""
    total = 1_000_000
    hosts = {
        "server1": host("servers", scale=100, pss_kib=48_000),
        "client1": host("clients", scale=100, held=500_000, established=None, pss_kib=24_000),
        "client2": host("clients", scale=100, held=500_000, established=None, pss_kib=24_000),
    }
    points = curve(total, 26, 10)
    return Run(
        schema_=1,
        run_id="20260131T120000Z-million",
        scenario="million",
        substrate="local",
        verdict="pass",
        reason="1,000,000 connections held by all three counts, 1,000 of 1,000 echoes answered",
        started=STARTED,
        finished=STARTED + timedelta(seconds=58),
        config=SCENARIO.model_dump(mode="json"),
        requested=Requested(connections=total),
        measured=Measured(
            established=Established(clients=total, servers=total, ss=total),
            ramp_seconds=22.41,
            connections_per_second=44_623.0,
            lost=0,
            retried=12,
            errors={"ETIMEDOUT": 12},
            connect_latency_us=Latency(p50=1_535, p90=2_303, p99=3_071, p999=9_215, max=212_991),
            kernel_bytes_per_connection=cost.kernel_bytes(hosts, shared_kernel=True),
            userland_bytes_per_connection=UserlandBytes(server=39.9, client=15.3),
            workers=Workers(server=51, client=52, pss_kib_each=1_240.5),
            liveness=Liveness(mode="sample", asked=1_000, answered=1_000),
            drain_seconds=7.9,
            left_after=0,
        ),
        predicted=Predicted(
            max_connections=1_032_192,
            bound_by="tuples",
            kernel_bytes_per_connection=8_091.3,
            limits={"tuples": 1_032_192, "fs.file-max": 1_999_775, "memory": 2_870_114},
        ),
        bound_by="none",
        curve=points,
        hosts=hosts,
        packages={"paramiko": "3.5.1", "pydantic": "2.11.7"},
        image={"hash": "3f2a", "packages": {"systemd": "252.39-1~deb12u1"}},
    )


def stopped() -> Run:
    """A run that a limit stopped on the way: kernels apart, memory at the floor."""
    run = million()
    points = curve(1_000_000, 211, 0, 4_010)[:172]
    held = points[-1].held
    hosts = {
        # Captured with both ends on one kernel: twice as many connections stand for one end each.
        "server1": host("servers", kernel="6.1", scale=20, held=800_000, pss_kib=44_000),
        "client1": host("clients", kernel="6.1", scale=20, held=800_000, established=None),
    }
    reason = (
        f"{held:,} of 1,000,000 connections held, bound by memory: really free memory fell to the "
        "floor of 768 MiB (server1: MemAvailable 1,146 MiB); add memory or hosts, or lower "
        "memory_floor_mib"
    )
    measured = run.measured.model_copy(
        update={
            "established": Established(clients=held, servers=held, ss=held - 3),
            "ramp_seconds": 171.0,
            "connections_per_second": 4_740.0,
            "lost": 1_204,
            "errors": {"ETIMEDOUT": 5_310, "ENOBUFS": 77},
            "kernel_bytes_per_connection": cost.kernel_bytes(hosts, shared_kernel=False),
            "liveness": Liveness(mode="sample", asked=1_000, answered=998, wrong=0),
            "left_after": 12,
        }
    )
    return run.model_copy(
        update={
            "run_id": "20260131T130000Z-million",
            "substrate": "vm",
            "verdict": "fail",
            "reason": reason,
            "bound_by": "memory",
            "measured": measured,
            "curve": points,
            "hosts": hosts,
            "predicted": Predicted(
                max_connections=802_113,
                bound_by="memory",
                kernel_bytes_per_connection=3_981.0,
                limits={"memory": 802_113, "tuples": 1_032_192},
            ),
        }
    )


def aborted() -> Run:
    """A run that ended before the first connection: no curve, no evidence."""
    run = million()
    bare = run.hosts["server1"].model_copy(
        update={"phases": {}, "tuning": {}, "reported": {}, "sysctl": {}, "limits": {}}
    )
    return run.model_copy(
        update={
            "run_id": "20260131T140000Z-million",
            "verdict": "aborted",
            "reason": "client2: agent died: worker 3 (pid 812) died: signal 9",
            "bound_by": "unknown",
            "measured": Measured(
                established=Established(clients=0, servers=0, ss=0),
                ramp_seconds=0.0,
                connections_per_second=0.0,
                lost=0,
                connect_latency_us=Latency(),
                kernel_bytes_per_connection=KernelBytes(),
                userland_bytes_per_connection=UserlandBytes(),
                liveness=Liveness(mode="none"),
            ),
            "curve": [],
            "hosts": {"server1": bare},
            "predicted": Predicted(
                max_connections=0, bound_by="unknown", kernel_bytes_per_connection=0.0
            ),
        }
    )
