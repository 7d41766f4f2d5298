from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from runs import SCENARIO, host, million

from bench.diagnose import diagnose, verdict
from bench.results import Established, HostRecord, Liveness, Measured


@dataclass
class Found:
    hosts: dict[str, HostRecord] = field(default_factory=dict)
    errors: dict[str, dict[str, int]] = field(default_factory=dict)
    stopped_by: str = "complete"


def measured(held: int = 900_000, **changes: Any) -> Measured:
    counts = Established(clients=held, servers=held, ss=held)
    return million().measured.model_copy(update={"established": counts, **changes})


def hosts(group: str = "servers", **peak: Any) -> dict[str, HostRecord]:
    return {"server1": host(group, **peak)}


def test_none_when_the_run_reached_its_target() -> None:
    """Errors that a retry overcame bound nothing."""
    found = Found(errors={"client": {"ETIMEDOUT": 12}})
    assert diagnose(SCENARIO, measured(1_000_000), found).bound_by == "none"


def test_lost_connections_may_be_expected() -> None:
    lenient = SCENARIO.model_copy(update={"expect_lost": 10})
    assert diagnose(lenient, measured(999_990), Found()).bound_by == "none"
    assert diagnose(lenient, measured(999_989), Found()).bound_by != "none"


@pytest.mark.parametrize(
    ("errors", "bound", "said"),
    [
        ({"client": {"EMFILE": 7}}, "nofile", "client: EMFILE 7 times"),
        ({"server": {"EMFILE": 7}}, "nofile", "server: EMFILE 7 times"),
        ({"server": {"ENFILE": 3}}, "fs.file-max", "server: ENFILE"),
        ({"client": {"EADDRNOTAVAIL": 9}}, "ports", "client: EADDRNOTAVAIL"),
        ({"client": {"EADDRINUSE": 9}}, "ports", "was in use"),
        ({"server": {"ENOSPC": 1_234}}, "fs.epoll.max_user_watches", "ENOSPC 1,234 times"),
        ({"client": {"ENOBUFS": 2}}, "memory", "no memory"),
        ({"client": {"ECONNREFUSED": 2}}, "refused", "nothing listened"),
        ({"client": {"EHOSTUNREACH": 2}}, "route", "ARP"),
        ({"client": {"ETIMEDOUT": 2}}, "network", "no server counted a drop"),
        ({"client": {"EPIPE": 2}}, "errors", "client EPIPE 2"),
        # A server without descriptors makes clients wait: the cause is named, not its echo.
        ({"client": {"ETIMEDOUT": 99}, "server": {"EMFILE": 1}}, "nofile", "server: EMFILE"),
        ({}, "unknown", "no counter"),
    ],
)
def test_errnos(errors: dict[str, dict[str, int]], bound: str, said: str) -> None:
    found = diagnose(SCENARIO, measured(lost=0), Found(hosts(), errors))
    assert found.bound_by == bound
    assert said in found.evidence
    assert found.cure


@pytest.mark.parametrize(
    ("counter", "bound"),
    [
        ("TcpExtListenOverflows", "backlog"),
        ("TcpExtListenDrops", "backlog"),
        ("TcpExtTCPReqQFullDrop", "tcp_max_syn_backlog"),
    ],
)
def test_timeouts_are_explained_by_the_servers_counters(counter: str, bound: str) -> None:
    late = {"client": {"ETIMEDOUT": 50}}
    found = Found(hosts(nstat={counter: 4_711}), late)
    diagnosis = diagnose(SCENARIO, measured(), found)
    assert diagnosis.bound_by == bound
    assert counter in diagnosis.evidence and "4,711" in diagnosis.evidence
    clients = Found(hosts("clients", nstat={counter: 4_711}), late)
    assert diagnose(SCENARIO, measured(), clients).bound_by == "network"


def test_short_of_memory() -> None:
    found = diagnose(SCENARIO, measured(), Found(hosts(), stopped_by="memory"))
    assert found.bound_by == "memory"
    assert "768 MiB" in found.evidence and "server1" in found.evidence


def test_no_buffers_under_tcp_pressure_is_tcp_mem() -> None:
    errors = {"client": {"ENOBUFS": 5}}
    pressed = hosts(sockstat={"TCP": {"mem_pages": 383_868}})
    assert diagnose(SCENARIO, measured(), Found(pressed, errors)).bound_by == "tcp_mem"
    counted = hosts(nstat={"TcpExtTCPMemoryPressures": 3})
    assert diagnose(SCENARIO, measured(), Found(counted, errors)).bound_by == "tcp_mem"


def test_a_full_conntrack_table() -> None:
    full = {"net.netfilter.nf_conntrack_max": 262_144, "net.netfilter.nf_conntrack_count": 262_140}
    found = Found(hosts(limits=full), {"client": {"ETIMEDOUT": 9}})
    diagnosis = diagnose(SCENARIO, measured(), found)
    assert diagnosis.bound_by == "nf_conntrack_max"
    assert "262,140" in diagnosis.evidence
    free = full | {"net.netfilter.nf_conntrack_count": 200_000}
    found = Found(hosts(limits=free), {"client": {"ETIMEDOUT": 9}})
    assert diagnose(SCENARIO, measured(), found).bound_by == "network"


def test_out_of_time() -> None:
    found = diagnose(SCENARIO, measured(), Found(hosts(), stopped_by="timeout"))
    assert found.bound_by == "ramp_timeout_seconds"


def test_ss_that_did_not_count_is_named() -> None:
    counts = Established(clients=1_000_000, servers=1_000_000, ss=0)
    found = Found(hosts(missing={"ss": "ss is not installed"}))
    diagnosis = diagnose(SCENARIO, measured(established=counts), found)
    assert "ss is not installed" in diagnosis.evidence


def judged(**changes: Any) -> tuple[str, str]:
    seen = measured(1_000_000, **changes)
    return verdict(SCENARIO, seen, diagnose(SCENARIO, seen, Found(hosts())))


def test_verdict_passes_with_its_proof() -> None:
    assert judged() == (
        "pass",
        "1,000,000 connections held by all three counts, 1,000 of 1,000 echoes answered",
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"established": Established(clients=1_000_001, servers=1_000_000, ss=1_000_000)}, "agree"),
        (
            {"established": Established(clients=1_000_000, servers=1_000_000, ss=9)},
            "9 of 1,000,000",
        ),
        ({"lost": 1}, "1 connections were lost, at most 0"),
        ({"liveness": Liveness(mode="sample", asked=10, answered=9)}, "9 of 10 echoes"),
        ({"liveness": Liveness(mode="all", asked=10, answered=10, wrong=1)}, "1 wrongly"),
        ({"liveness": Liveness(mode="sample")}, "0 of 0 echoes"),
        ({"left_after": 3}, "3 sockets were left"),
    ],
)
def test_verdict_fails_with_its_reason(changes: dict[str, Any], said: str) -> None:
    found, reason = judged(**changes)
    assert found == "fail"
    assert said in reason


def test_verdict_without_echoes_or_drain() -> None:
    assert judged(liveness=Liveness(mode="none"), left_after=None)[0] == "pass"


def floored(held: int = 983_120, stopped_by: str = "memory", **changes: Any) -> tuple[str, str]:
    wanted = SCENARIO.model_copy(update={"expect": "floor", "memory_floor_mib": 64})
    seen = measured(held, **changes)
    return verdict(wanted, seen, diagnose(wanted, seen, Found(hosts(), stopped_by=stopped_by)))


def test_ending_at_the_floor_may_be_what_was_expected() -> None:
    assert floored() == (
        "pass",
        "983,120 connections held by all three counts above the memory floor of 64 MiB, "
        "1,000 of 1,000 echoes answered",
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"held": 1_000_000}, "memory floor not reached, bound by none: all 1,000,000 connections"),
        ({"stopped_by": "timeout"}, "memory floor not reached, bound by ramp_timeout_seconds"),
        ({"stopped_by": "complete", "errors": {"ENOMEM": 1}}, "memory floor not reached"),
        ({"held": 0, "liveness": Liveness(mode="none")}, "0 of 1,000,000 connections held, bound"),
        ({"established": Established(clients=9, servers=8, ss=9)}, "the three counts disagree"),
        ({"lost": 1}, "1 connections were lost"),
        ({"liveness": Liveness(mode="sample", asked=10, answered=9)}, "9 of 10 echoes"),
        ({"left_after": 3}, "3 sockets were left"),
    ],
)
def test_the_floor_is_met_only_with_everything_alive(changes: dict[str, Any], said: str) -> None:
    found, reason = floored(**changes)
    assert found == "fail"
    assert said in reason


def test_the_floor_fails_a_run_that_expects_all() -> None:
    seen = measured(983_120)
    diagnosis = diagnose(SCENARIO, seen, Found(hosts(), stopped_by="memory"))
    assert verdict(SCENARIO, seen, diagnosis)[0] == "fail"
