from __future__ import annotations

import pytest
from evidence import Found, hosts, measured
from runs import SCENARIO

from bench.diagnosis.diagnose import diagnose
from bench.diagnosis.findings import Floor
from bench.results.format import Established, Predicted, Step


def test_none_when_the_run_reached_its_target() -> None:
    """Errors that a retry overcame bound nothing."""
    found = Found(by_side={"client": {"ETIMEDOUT": 12}})
    assert diagnose(SCENARIO, measured(1_000_000), found).bound_by == "none"


def test_lost_connections_may_be_expected() -> None:
    lenient = SCENARIO.model_copy(update={"expect_lost": 10})
    assert diagnose(lenient, measured(999_990), Found()).bound_by == "none"
    assert diagnose(lenient, measured(999_989), Found()).bound_by != "none"


@pytest.mark.parametrize(
    ("errors", "bound", "said"),
    [
        ({"client": {"EMFILE": 7}}, "nofile", "client1, client: EMFILE 7 times"),
        ({"server": {"EMFILE": 7}}, "nofile", "server1, server: EMFILE 7 times"),
        ({"server": {"ENFILE": 3}}, "fs.file-max", "server1, server: ENFILE"),
        ({"client": {"EADDRNOTAVAIL": 9}}, "ports", "client1, client: EADDRNOTAVAIL"),
        ({"client": {"EADDRINUSE": 9}}, "ports", "was in use"),
        ({"server": {"ENOSPC": 1_234}}, "fs.epoll.max_user_watches", "ENOSPC 1,234 times"),
        ({"client": {"ENOBUFS": 2}}, "memory", "no memory"),
        ({"client": {"ECONNREFUSED": 2}}, "refused", "nothing listened"),
        ({"client": {"EHOSTUNREACH": 2}}, "route", "ARP"),
        ({"client": {"ETIMEDOUT": 2}}, "network", "no server counted a drop"),
        ({"client": {"EPIPE": 2}}, "errors", "client1, client: EPIPE 2"),
        # A server without descriptors makes clients wait: the cause is named, not its echo.
        (
            {"client": {"ETIMEDOUT": 99}, "server": {"EMFILE": 1}},
            "nofile",
            "server1, server: EMFILE",
        ),
        ({}, "unknown", "no counter"),
    ],
)
def test_errnos(errors: dict[str, dict[str, int]], bound: str, said: str) -> None:
    found = diagnose(SCENARIO, measured(lost=0), Found(hosts(), errors))
    assert found.bound_by == bound
    assert said in " ".join(found.evidence)
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
    late = {"client": {"ETIMEDOUT": 5_000}}
    found = Found(hosts(nstat={counter: 4_711}), late)
    diagnosis = diagnose(SCENARIO, measured(), found)
    assert diagnosis.bound_by == bound
    said = " ".join(diagnosis.evidence)
    assert counter in said and "4,711" in said
    assert (diagnosis.end, diagnosis.host, diagnosis.sure) == ("server", "server1", "likely")
    clients = Found(hosts("clients", nstat={counter: 4_711}), late)
    assert diagnose(SCENARIO, measured(), clients).bound_by == "network"


def test_short_of_memory_is_who_said_so() -> None:
    """Not who has the least MemAvailable: that counts sockets' own inodes as free."""
    found = Found(hosts(), stopped_by="memory", floor=Floor("client7", "client", 787_000))
    diagnosis = diagnose(SCENARIO, measured(), found)
    assert (diagnosis.bound_by, diagnosis.sure) == ("memory", "certain")
    assert (diagnosis.host, diagnosis.end) == ("client7", "client")
    assert "floor of 768 MiB (768 MiB left)" in diagnosis.evidence[0]
    short = diagnose(SCENARIO, measured(), Found(hosts(), stopped_by="memory"))
    assert (short.bound_by, short.host) == ("memory", "")


def test_no_buffers_under_tcp_pressure_is_tcp_mem() -> None:
    errors = {"client": {"ENOBUFS": 5}}
    pressed = hosts(sockstat={"TCP": {"mem_pages": 383_868}})
    assert diagnose(SCENARIO, measured(), Found(pressed, errors)).bound_by == "tcp_mem"
    counted = hosts(nstat={"TcpExtTCPMemoryPressures": 3})
    assert diagnose(SCENARIO, measured(), Found(counted, errors)).bound_by == "tcp_mem"


def test_time_outs_under_tcp_pressure_are_the_hosts_that_is_short() -> None:
    pressed = hosts(sockstat={"TCP": {"mem_pages": 383_868}})
    diagnosis = diagnose(SCENARIO, measured(), Found(pressed, {"client": {"ETIMEDOUT": 5_000}}))
    assert (diagnosis.bound_by, diagnosis.host, diagnosis.end) == ("tcp_mem", "server1", "server")
    assert "server1: TCP uses 383,868 pages" in diagnosis.evidence[0]


def test_a_full_conntrack_table() -> None:
    full = {"net.netfilter.nf_conntrack_max": 262_144, "net.netfilter.nf_conntrack_count": 262_140}
    found = Found(hosts(limits=full), {"client": {"ETIMEDOUT": 9}})
    diagnosis = diagnose(SCENARIO, measured(), found)
    assert diagnosis.bound_by == "nf_conntrack_max"
    assert "262,140" in diagnosis.evidence[0]
    assert (diagnosis.host, diagnosis.sure) == ("server1", "likely")
    free = full | {"net.netfilter.nf_conntrack_count": 200_000}
    found = Found(hosts(limits=free), {"client": {"ETIMEDOUT": 9}})
    assert diagnose(SCENARIO, measured(), found).bound_by == "network"


def test_out_of_time() -> None:
    found = diagnose(SCENARIO, measured(), Found(hosts(), stopped_by="timeout"))
    assert found.bound_by == "ramp_timeout_seconds"
    assert found.evidence == ["the ramp was stopped after 600 s"]


def test_out_of_time_names_the_host_that_was_short_of_it() -> None:
    errors = {"client": {"ETIMEDOUT": 1_234}}
    found = diagnose(SCENARIO, measured(), Found(hosts(), errors, stopped_by="timeout"))
    assert "the ramp was stopped after 600 s (client1, client: ETIMEDOUT 1,234)" in found.evidence


def test_ss_that_did_not_count_is_named() -> None:
    counts = Established(clients=1_000_000, servers=1_000_000, ss=0)
    found = Found(hosts(missing={"ss": "ss is not installed"}))
    diagnosis = diagnose(SCENARIO, measured(established=counts), found)
    assert "ss is not installed" in diagnosis.evidence[0]
    assert diagnosis.sure == "unsure"


def test_what_agrees_stands_together_and_makes_it_certain() -> None:
    """A full table and the kernel's word for it; the time-outs alone would name nothing."""
    full = {"net.netfilter.nf_conntrack_max": 5_000, "net.netfilter.nf_conntrack_count": 5_000}
    line = "[ 42.0] nf_conntrack: nf_conntrack: table full, dropping packet"
    found = Found(hosts(limits=full, kernel_log=[line, line]), {"client": {"ETIMEDOUT": 9}})
    diagnosis = diagnose(SCENARIO, measured(), found)
    assert (diagnosis.bound_by, diagnosis.sure) == ("nf_conntrack_max", "certain")
    assert len(diagnosis.evidence) == 2
    assert any("table full, dropping packet" in one for one in diagnosis.evidence)


def test_a_kernel_message_from_before_the_run_says_nothing() -> None:
    line = "[ 42.0] VFS: file-max limit 9000 reached"
    found = Found(hosts(kernel_log=[line]), {"client": {"ETIMEDOUT": 9}})
    assert diagnose(SCENARIO, measured(), found).bound_by == "fs.file-max"
    found.hosts["server1"].phases["before"].kernel_log = [line]
    assert diagnose(SCENARIO, measured(), found).bound_by == "network"


def test_packets_that_conntrack_dropped_name_it() -> None:
    nearly = {"net.netfilter.nf_conntrack_max": 5_000, "net.netfilter.nf_conntrack_count": 4_500}
    late = {"client": {"ETIMEDOUT": 2_000}}
    found = Found(hosts(limits=nearly, conntrack={"drop": 77}), late)
    diagnosis = diagnose(SCENARIO, measured(), found)
    assert diagnosis.bound_by == "nf_conntrack_max"
    assert "77 packets dropped" in diagnosis.evidence[0]
    half = nearly | {"net.netfilter.nf_conntrack_count": 4_000}
    found = Found(hosts(limits=half, conntrack={"drop": 77}), late)
    assert diagnose(SCENARIO, measured(), found).bound_by == "network"


@pytest.mark.parametrize(
    ("event", "bound"), [("pids.events:max", "pids"), ("memory.events:max", "memory.max")]
)
def test_a_cgroup_that_met_its_limit(event: str, bound: str) -> None:
    found = Found(hosts(cgroups={"/user.slice": {event: 3}}), {"client": {"ETIMEDOUT": 9}})
    diagnosis = diagnose(SCENARIO, measured(), found)
    assert (diagnosis.bound_by, diagnosis.end, diagnosis.host) == (bound, "server", "server1")
    assert "cgroup /user.slice reached its limit 3 times" in diagnosis.evidence[0]
    found.hosts["server1"].phases["before"].cgroups = {"/user.slice": {event: 3}}
    assert diagnose(SCENARIO, measured(), found).bound_by == "network"


def test_a_fork_that_was_refused_is_why_there_are_no_more_descriptors() -> None:
    found = Found(hosts(), {"server": {"EAGAIN": 1, "EMFILE": 80}})
    diagnosis = diagnose(SCENARIO, measured(), found)
    assert (diagnosis.bound_by, diagnosis.sure) == ("pids", "certain")
    alone = diagnose(SCENARIO, measured(), Found(hosts(), {"server": {"EAGAIN": 1}}))
    assert (alone.bound_by, alone.sure) == ("pids", "likely")


@pytest.mark.parametrize(
    ("errno", "bound"), [("ENOSPC", "fs.epoll.max_user_watches"), ("ENFILE", "fs.file-max")]
)
def test_a_fork_that_was_refused_hides_no_other_limit(errno: str, bound: str) -> None:
    found = Found(hosts(), {"server": {"EAGAIN": 1, errno: 80}})
    assert diagnose(SCENARIO, measured(), found).bound_by == bound


def test_the_last_step_tells_what_ended_a_ramp_in_steps() -> None:
    """What an earlier one met, a later one got past."""
    errors = {"client": {"EHOSTUNREACH": 1, "ETIMEDOUT": 256}}
    full = {"net.netfilter.nf_conntrack_max": 5_000, "net.netfilter.nf_conntrack_count": 5_000}
    steps = [
        Step(goal=5_100, held=5_000, lost=100, seconds=1.0, errors={"EHOSTUNREACH": 1}),
        Step(goal=5_200, held=5_000, lost=100, seconds=1.0, errors={"ETIMEDOUT": 256}),
    ]
    found = Found(hosts(limits=full), errors, stopped_by="limit", steps=steps)
    assert diagnose(SCENARIO, measured(), found).bound_by == "nf_conntrack_max"
    found.steps = steps[:1]
    assert diagnose(SCENARIO, measured(), found).bound_by == "route"


@pytest.mark.parametrize("errno", ["ECONNREFUSED", "EHOSTUNREACH", "ETIMEDOUT"])
def test_an_errno_met_now_and_then_has_not_stopped_a_ramp(errno: str) -> None:
    grew = {"TcpExtListenOverflows": 3}
    found = Found(hosts(nstat=grew), {"client": {errno: 1}}, stopped_by="timeout")
    diagnosis = diagnose(SCENARIO, measured(), found)
    assert (diagnosis.bound_by, diagnosis.sure) == ("ramp_timeout_seconds", "likely")


def test_what_a_host_shows_as_used_up() -> None:
    files = {"fs.file-max": 9_000, "fs.file-nr": "8990 0 9000"}
    late = {"client": {"ETIMEDOUT": 5_000}}
    assert (
        diagnose(SCENARIO, measured(), Found(hosts(limits=files), late)).bound_by == "fs.file-max"
    )
    found = Found(hosts(sockstat={"TCP": {"orphan": 4_096}}), late)
    found.hosts["server1"].sysctl["net.ipv4.tcp_max_orphans"] = "4096"
    assert diagnose(SCENARIO, measured(), found).bound_by == "tcp_max_orphans"
    found.hosts["server1"].sysctl["net.ipv4.tcp_max_orphans"] = "4097"
    assert diagnose(SCENARIO, measured(), found).bound_by == "network"


def test_descriptors_end_at_the_lower_of_nofile_and_nr_open() -> None:
    found = Found(hosts(), {"server": {"EMFILE": 5}})
    assert diagnose(SCENARIO, measured(), found).bound_by == "nofile"
    found.hosts["server1"].sysctl["fs.nr_open"] = "20000"  # just nofile, which is met first
    assert diagnose(SCENARIO, measured(), found).bound_by == "nofile"
    found.hosts["server1"].sysctl["fs.nr_open"] = "19999"
    diagnosis = diagnose(SCENARIO, measured(), found)
    assert (diagnosis.bound_by, diagnosis.cure) == ("fs.nr_open", "raise fs.nr_open")


def test_ports_that_the_kernel_chooses_end_with_its_range() -> None:
    chosen = SCENARIO.model_copy(update={"source_ports": "kernel"})
    found = Found(hosts(), {"client": {"EADDRNOTAVAIL": 5}})
    assert diagnose(chosen, measured(), found).bound_by == "ip_local_port_range"
    assert diagnose(SCENARIO, measured(), found).bound_by == "ports"


def test_all_tuples_used_is_the_limit_of_who_looks_for_one() -> None:
    predicted = Predicted(
        max_connections=1_000_000,
        bound_by="tuples",
        kernel_bytes_per_connection=1.0,
        limits={"tuples": 1_000_000},
    )
    found = Found(hosts(), predicted=predicted)
    wanted = SCENARIO.model_copy(update={"expect": "limit"})
    assert diagnose(wanted, measured(1_000_000), found).bound_by == "tuples"
    assert diagnose(SCENARIO, measured(1_000_000), found).bound_by == "none"
    predicted.limits["tuples"] += 1
    assert diagnose(wanted, measured(1_000_000), found).bound_by == "none"
    predicted.limits["tuples"] = 8_000
    assert diagnose(wanted, measured(8_000), found).bound_by == "tuples"


def test_the_floor_outranks_what_a_system_call_answered() -> None:
    found = Found(hosts(), {"server": {"EMFILE": 5}}, stopped_by="memory")
    assert diagnose(SCENARIO, measured(), found).bound_by == "memory"
