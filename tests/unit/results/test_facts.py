from __future__ import annotations

import ipaddress
from datetime import UTC, datetime

import pytest
from captured import collected
from model_parts import record

from bench.errors import LabError
from bench.results import facts

NOW = datetime(2026, 1, 31, tzinfo=UTC)


def test_phase_of_a_whole_event() -> None:
    phase = facts.phase(collected("6.1", "peak"), NOW)
    assert phase.missing == {}
    assert phase.held == phase.established == 20_000
    assert phase.limits["fs.file-nr"] == "449 0 2466177"
    assert phase.limits["max_open_files_hard"] == 20_000
    assert "max_cpu_time_hard" not in phase.limits
    assert phase.slab_bytes["TCP"] == 2858 * 8 * 4096
    assert all(phase.nstat.values())
    assert {"TCP", "TCP6"} <= phase.sockstat.keys()


def test_limits_that_connections_meet_are_kept() -> None:
    event = collected("6.1", "peak")
    rows = event["texts"]["limits"].replace(
        "Max processes", "Max processes             1167                 4096                 p\n#"
    )
    kept = facts.phase({**event, "texts": {**event["texts"], "limits": rows.split("\n#")[0]}}, NOW)
    assert (kept.limits["max_processes_soft"], kept.limits["max_processes_hard"]) == (1167, 4096)


def test_control_characters_of_evidence_are_escaped() -> None:
    event = collected("6.1", "peak")
    event["texts"]["kernel_log"] = "[1.0] TCP: out of memory \x1b[2J\x9b\n[2.0] quiet\n"
    phase = facts.phase(event, NOW)
    assert phase.kernel_log == ["[1.0] TCP: out of memory \\x1b[2J\\x9b"]


def test_page_size_is_the_hosts_own() -> None:
    phase = facts.phase(collected("6.1", "peak"), NOW, page_bytes=65536)
    assert phase.slab_bytes["TCP"] == 2858 * 8 * 65536


def test_a_phase_is_taken_now() -> None:
    began = datetime.now(UTC)
    assert began <= facts.phase(collected("6.1", "peak")).taken <= datetime.now(UTC)


def test_what_cannot_be_read_or_understood_is_named() -> None:
    event = collected("6.1", "peak", missing={"slabinfo": "Permission denied"})
    del event["texts"]["slabinfo"]
    del event["texts"]["nstat"]
    event["texts"]["meminfo"] = "MemTotal: lots\n"
    phase = facts.phase(event, NOW)
    assert phase.missing["slabinfo"] == "Permission denied"
    assert phase.missing["nstat"] == "not sent by the agent"
    assert phase.missing["meminfo"].startswith("not understood: meminfo line 1")
    assert phase.slab_bytes == {} and phase.ss_summary["tcp_estab"] == 40_000


def test_host_record() -> None:
    event = {
        "event": "facts",
        "hostname": "server1",
        "kernel": "6.1.0-56-cloud-amd64",
        "python": "3.11.2",
        "cpu": 2,
        "mem_total_kib": 3_922_952,
        "nofile_soft": 1_024,
        "nofile_hard": 1_048_576,
        "own_tasks": 7,
        "tracking": False,
        "cap_sys_resource": False,
        "sysctl": {"net.ipv4.tcp_mem": "1 2 3"},
        "addresses": ["198.18.0.1"],
        "ehash_entries": 1_048_576,
        "roles": {
            "tune_sysctl": {
                "role": "tune_sysctl",
                "settings": {"fs.nr_open": {"found": "1048576", "set": "2000000", "where": "host"}},
                "reported": {"net.core.netdev_max_backlog": "read-only"},
            },
            "alias_ips": {"role": "alias_ips", "settings": {"x": {"found": None, "set": 3}}},
            "tune_limits": {"unreadable": "/var/lib/connlab/tune_limits.json: Permission denied"},
        },
    }
    record = facts.host_record(event, {"servers", "all"})
    assert record.groups == ["all", "servers"]
    assert record.limits["nofile_hard"] == 1_048_576
    assert record.limits["own_tasks"] == 7
    assert record.tuning["tune_sysctl"]["fs.nr_open"].found == "1048576"
    assert record.tuning["alias_ips"]["x"].found == "absent"
    assert record.reported["net.core.netdev_max_backlog"] == "read-only"
    assert record.reported["tune_limits"].endswith("Permission denied")


def test_evidence_of_another_phase_than_was_asked_for_is_named() -> None:
    facts.check_phase("server1", {"phase": "peak"}, "peak")
    with pytest.raises(
        LabError, match=r"^host server1: protocol: collected: phase: got 'before', "
    ):
        facts.check_phase("server1", {"phase": "before"}, "peak")


@pytest.mark.parametrize(
    ("address", "has"),
    [
        ("198.17.255.255", False),
        ("198.18.0.0", True),
        ("198.18.0.9", True),
        ("198.18.0.255", True),
        ("198.18.1.0", False),
        ("198.19.0.1", True),
        ("198.19.0.2", False),
        ("fd63::", True),
        ("fd63::ffff:ffff:ffff:ffff", True),
        ("fd63:0:0:1::", False),
        ("::c612:1", False),  # 198.18.0.1 as a number
    ],
)
def test_a_host_answers_for_its_networks_from_the_first_to_the_last(
    address: str, has: bool
) -> None:
    networks = ["198.19.0.1", "198.18.0.7", "198.18.0.0/24", "198.18.0.8/31", "fd63::/64"]
    host = record("6.1", "clients").model_copy(update={"addresses": networks})
    assert (ipaddress.ip_address(address) in facts.Local(host)) is has
