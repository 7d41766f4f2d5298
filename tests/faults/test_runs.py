"""Whole runs over SSH with a fault in them: the cells of the table that matter most.

`make faults` puts every fault into every phase on real hosts. Here the hosts are namespaces with an
SSH server (:mod:`labs`), the controller and the agents are the real ones, and what is looked
at is the same.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import BEFORE, drive, passes
from labs import SmallHosts
from table import FAULTS

CELLS = (
    ("controller SIGKILL", "controller", "ramp"),
    ("controller SIGTERM", "controller", "prepare"),
    ("controller SIGINT twice", "controller", "ramp"),
    ("controller SIGSTOP", "controller", "ramp"),
    ("agent SIGKILL", "client1", "ramp"),
    ("agent SIGSTOP", "server1", "prepare"),
    ("worker SIGKILL", "server1", "ramp"),
    ("worker SIGSTOP", "client1", "ramp"),
    ("management cut", "client1", "hold"),
    ("powered off", "server1", "ramp"),
    ("disk full", "controller", "ramp"),
    ("disk full", "client1", BEFORE),
    ("nofile lowered", "client1", "prepare"),
    ("data port redirected", "server1", BEFORE),
    ("data port redirected", "server1", "ramp"),
)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallHosts]:
    assert os.geteuid() == 0, "these tests make namespaces: run them as root"
    with SmallHosts(tmp_path_factory.mktemp("hosts")) as made:
        yield made


def test_a_small_host_cannot_harm_the_machine(hosts: SmallHosts) -> None:
    """Whatever a broken guard has it remove is not there to be removed."""
    init = str(hosts.hosts["server1"].init())
    for folder in ("/", "/home", "/usr", "/var/tmp", "/run", "/sys/fs/cgroup"):
        words = ["nsenter", "-m", "-t", init, "mktemp", f"--tmpdir={folder}"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 1, folder
        assert "Read-only file system" in done.stderr
    mine = subprocess.run(["nsenter", "-m", "-t", init, "mktemp"], check=False)
    assert mine.returncode == 0


@pytest.mark.parametrize("cell", CELLS, ids=[", ".join(cell) for cell in CELLS])
def test_a_run_with_a_fault_ends_as_it_should(
    hosts: SmallHosts, tmp_path: Path, cell: tuple[str, str, str]
) -> None:
    name, on, phase = cell
    fault = next(one for one in FAULTS if one.name == name and on in one.on)
    row = drive(hosts, fault, on, phase, tmp_path / "case", then=False)
    assert row.failures == []


def test_the_next_run_passes(hosts: SmallHosts, tmp_path: Path) -> None:
    assert passes(hosts, tmp_path / "next") == ""


def test_a_clock_that_is_stepped_changes_nothing(hosts: SmallHosts, tmp_path: Path) -> None:
    fault = next(one for one in FAULTS if one.name == "clock stepped")
    row = drive(hosts, fault, "controller", "ramp", tmp_path / "case", then=False)
    assert row.failures == []
