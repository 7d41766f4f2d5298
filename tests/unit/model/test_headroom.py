"""How much of each limit a host has, from what it said before a run."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from model_parts import lab, record

from bench.model import headroom
from bench.model.bounds import Room, Share
from bench.plan.topology import Topology
from bench.results.format import HostRecord
from bench.scenario import Scenario

WHOLE = Fraction(1)


def scenario(**fields: Any) -> Scenario:
    return Scenario(name="test", title="test", **fields)


def of_client(host: HostRecord, **fields: Any) -> Share:
    return headroom.share(
        Topology(scenario(**fields), lab(False)), "client1", host, {}, "clients", Fraction(1, 2)
    )


def of_server(host: HostRecord, **fields: Any) -> Share:
    return headroom.share(
        Topology(scenario(**fields), lab(False)), "server1", host, {}, "servers", WHOLE
    )


@pytest.mark.parametrize(
    ("first_last", "reserved", "ports", "room"),
    [
        ("40000 43999", "", [5000], 4_000),
        ("40000\t43999", "", [5000, 5001], 8_000),
        ("40000 43999", "40000-40009,41000,50000", [5000], 3_989),
        ("40000 43999", "40000-40009,40000-40009,40005,x,²-9", [5000], 3_990),
        ("40000 43999", ",".join(["0-99999999999"] * 9_999), [5000], 0),
        ("x", "", [5000], 28_232),
        ("1 99999999999", "", [5000], 65_535),
    ],
)
def test_ports_that_the_kernel_may_choose(
    first_last: str, reserved: str, ports: list[int], room: int
) -> None:
    host = record("6.1", "clients")
    host.sysctl["net.ipv4.ip_local_port_range"] = first_last
    host.sysctl["net.ipv4.ip_local_reserved_ports"] = reserved
    chosen = of_client(host, source_ports="kernel", server_ports=ports)
    assert chosen.ports == Room(room, 0)
    assert of_client(host, server_ports=ports).ports is None
    assert of_server(host, source_ports="kernel").ports is None


def test_a_number_of_open_files_goes_as_far_as_the_hard_limit() -> None:
    host = record("6.1", "clients")
    assert [of_client(host, nofile=most).nofile for most in (19_999, 20_000, 20_001)] == [
        19_999,
        20_000,
        20_000,
    ]
    assert of_client(host, nofile="soft").nofile == 1_024


def test_what_open_files_pin_is_no_free_memory() -> None:
    host = record("6.1", "servers")
    before = host.phases["before"]
    before.meminfo_kib["MemAvailable"] = 900_000
    before.limits["fs.file-nr"] = "10240 0 2466177"
    made = headroom.kernel(scenario(memory_floor_mib=100), "server1", {"server1": host}, ())
    assert made.memory == Room((900_000 - 11_000) * 1024, 100 << 20)
    assert made.files == Room(2_466_177, 10_240)


def test_only_addresses_of_one_family_make_a_pair() -> None:
    inventory = lab(False)
    six = replace(inventory.hosts["client1"], data_addresses=("198.18.1.1", "fd63:6f6e:6e6c::9"))
    host = record("6.1", "clients")
    found = headroom.local_ports(Topology(scenario(), inventory), six, host)
    assert found == headroom.local_ports(
        Topology(scenario(), inventory), inventory.hosts["client1"], host
    )
    assert found == 28_232  # the kernel's default, where a host told of none


def test_descriptors_that_are_no_connections() -> None:
    host = record("6.1", "servers")
    assert of_server(host).reserve == 64 + 1
    assert of_server(host, server_ports=[5000, 5001]).reserve == 64 + 2
    # To the very end: the twelve that a server's worker has, and its listener.
    assert of_server(host, workers=2).reserve == of_server(host, expect="limit").reserve == 12 + 1
    assert of_client(host, expect="limit").reserve == 11
    both = {"workers": 2, "server_workers": 3}
    assert (of_server(host, **both).workers, of_client(host, **both).workers) == (3, 2)
    alone = of_client(host, server_workers=3)
    assert (alone.workers, alone.reserve) == (None, 64)
    assert (of_server(host).nofile, of_server(host, nofile="soft").nofile) == (20_000, 1_024)


def grouped(**figures: int) -> HostRecord:
    """A host whose agent is in a cgroup with limits, inside one that has none."""
    host = record("6.1", "servers")
    host.phases["before"].cgroups = {"/user.slice/user-1000.slice": figures, "/user.slice": {}}
    return host


def test_tasks_of_a_cgroup_are_those_of_others() -> None:
    """Of 45: 40 workers of this run, its doorkeeper and who gathers; 8 are kept for the agent."""
    host = grouped(**{"pids.max": 50, "pids.current": 45})
    host.phases["before"].workers = 40
    assert of_server(host).tasks == Room(50, 45 - 42 + 8)
    host.phases["before"].workers = 0  # nothing of a run is there yet
    assert of_server(host).tasks == Room(50, 45 - 1 + 8)
    assert of_server(record("6.1", "servers")).tasks is None


def test_memory_of_a_cgroup_with_the_least_room_counts() -> None:
    host = grouped(**{"memory.max": 9_000, "memory.current": 1_000})
    assert of_server(host).memory_max == Room(9_000, 1_000)
    host.phases["before"].cgroups["/user.slice"] = {"memory.max": 8_000, "memory.current": 2_000}
    assert of_server(host).memory_max == Room(8_000, 2_000)


def test_workers_take_memory_as_long_as_they_are_to_come() -> None:
    host = record("6.1", "servers")
    host.phases["before"].workers = 0
    assert of_server(host).worker_bytes == 2_560 << 10
    assert of_server(host, workers=2).worker_bytes == 0
    host.phases["before"].workers = 2
    assert of_server(host).worker_bytes == 0


@pytest.mark.parametrize(
    ("limits", "own", "room"),
    [
        ({"max_processes_soft": 400}, 30, Room(400, 30 + 2 * 8)),
        # Of 245 tasks 7 are this run's: on each host 2 workers and who gathers, and a doorkeeper.
        ({"kernel.pid_max": 4_096, "/proc/loadavg": "0.1 0.2 0.3 1/245 99"}, 30, (4_096, 254)),
        (
            {
                "kernel.threads-max": 300,
                "max_processes_soft": 4_000,
                "/proc/loadavg": "1 1 1 2/99 7",
            },
            30,
            (300, 108),
        ),
    ],
)
def test_tasks_of_a_kernel_with_the_least_room_count(
    limits: dict[str, Any], own: int, room: tuple[int, int]
) -> None:
    hosts = {"server1": record("6.1", "servers"), "client1": record("6.1", "clients")}
    for host in hosts.values():
        host.limits["own_tasks"] = own
        host.phases["before"].workers = 2
        host.phases["before"].limits = limits
    assert headroom.kernel(scenario(), "server1", hosts, ()).tasks == room


def test_what_a_kernel_did_not_tell_is_not_known() -> None:
    host = record("6.1", "servers")
    host.sysctl, host.phases = {}, {}
    found = headroom.kernel(scenario(), "server1", {"server1": host}, ())
    assert (found.memory, found.files, found.tasks) == (None, None, None)
    assert found.watches == Room(headroom.watches_default(host.mem_total_kib), 0)
