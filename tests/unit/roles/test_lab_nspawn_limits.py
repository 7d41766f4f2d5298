"""Limits of the machine that labs raise: never lowered, and put back by the last one alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tune_loader import load

load("lab_common", "module_utils", "connlab_layout")
base = load("lab_common", "module_utils", "connlab_base")
load("lab_nspawn", "module_utils", "connlab_processes")
load("lab_nspawn", "module_utils", "connlab_network")
limits = load("lab_nspawn", "module_utils", "connlab_limits")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files that stand for the machine's own."""
    monkeypatch.setattr(limits, "RUN", tmp_path / "run")
    monkeypatch.setattr(limits, "INOTIFY", tmp_path / "inotify")
    monkeypatch.setattr(limits, "INOTIFY_MARK", tmp_path / "run" / "inotify")
    monkeypatch.setattr(limits, "NSPAWN", tmp_path / "nspawn")
    monkeypatch.setattr(limits, "NSPAWN_MARK", tmp_path / "run" / "nspawn-made")
    monkeypatch.setattr(limits, "cgroups", lambda name: [tmp_path / "cgroup"])
    monkeypatch.setattr(limits, "remove_netns_directory", lambda: None)
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "inotify").write_text("128\n")
    return tmp_path


def inotify(machine: Path) -> int:
    return int((machine / "inotify").read_text())


def hosts(count: int) -> set[str]:
    return {f"lab-client{number}.connlab" for number in range(count)}


def test_the_limit_is_raised_for_all_labs_hosts_and_put_back(machine: Path) -> None:
    limits.allow_inotify(hosts(10))
    assert inotify(machine) == 64 + 8 * 10
    (machine / "cgroup" / "other-server1.connlab").mkdir()
    limits.allow_inotify(hosts(10))
    assert inotify(machine) == 64 + 8 * 11
    limits.restore_inotify()
    assert inotify(machine) == 128
    assert not (machine / "run" / "inotify").exists()


def test_a_limit_that_is_enough_is_left_alone(machine: Path) -> None:
    for count in (8, 2):  # 8 hosts ask for just what there is
        limits.allow_inotify(hosts(count))
        assert inotify(machine) == 128
    assert not (machine / "run" / "inotify").exists()


def test_a_limit_that_somebody_else_has_set_meanwhile_stays(machine: Path) -> None:
    limits.allow_inotify(hosts(10))
    (machine / "inotify").write_text("8192\n")
    limits.restore_inotify()
    assert inotify(machine) == 8192


def test_nothing_is_undone_while_another_lab_is_there(machine: Path) -> None:
    limits.allow_inotify(hosts(10))
    limits.mark_nspawn()
    (machine / "nspawn" / "locks").mkdir(parents=True)
    (machine / "run" / "other.owner").write_text("/somewhere\n")
    limits.leave_as_found()
    assert inotify(machine) == 64 + 8 * 10
    assert (machine / "nspawn").exists()
    (machine / "run" / "other.owner").unlink()
    limits.leave_as_found()
    assert inotify(machine) == 128
    assert not (machine / "nspawn").exists()


def test_a_directory_that_was_there_before_stays(machine: Path) -> None:
    (machine / "nspawn" / "locks").mkdir(parents=True)
    limits.mark_nspawn()
    limits.leave_as_found()
    assert (machine / "nspawn" / "locks").exists()


def test_traces_of_one_machine_alone_are_removed(machine: Path) -> None:
    for name in ("propagate/lab-server1", "propagate/lab-server2", "locks"):
        (machine / "nspawn" / name).mkdir(parents=True)
    for name in ("inode-1:7", "inode-1:8"):
        (machine / "nspawn" / "locks" / name).touch()
    limits.remove_nspawn_traces("lab-server1", {7})
    left: list[Any] = sorted(str(p.relative_to(machine / "nspawn")) for p in machine.rglob("*:*"))
    assert left == ["locks/inode-1:8"]
    assert [path.name for path in (machine / "nspawn" / "propagate").iterdir()] == ["lab-server2"]
