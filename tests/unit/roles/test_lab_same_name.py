"""A lab of nspawn hosts and one of virtual machines, of the same name and in the same checkout."""

from pathlib import Path
from typing import Any

import pytest
from tune_loader import load
from vm_parts import NAME, Module, base, host, site

network = load("lab_nspawn", "module_utils", "connlab_network")
processes = load("lab_nspawn", "module_utils", "connlab_processes")
limits = load("lab_nspawn", "module_utils", "connlab_limits")
layout = load("lab_common", "module_utils", "connlab_layout")
nspawn_site = load("lab_nspawn", "module_utils", "connlab_site")

HOSTS = [host("server1"), host("client1")]


def tree(top: Path) -> dict[str, str | bytes | None]:
    """All that is below a directory, by path: where a link leads, or what a file holds."""
    return {
        str(path.relative_to(top)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in top.rglob("*")
    }


@pytest.fixture
def nspawn_lab(lab_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a lab of nspawn hosts keeps in its directory; none of it is on this machine itself."""
    monkeypatch.setattr(base, "RUN", tmp_path / "run")
    monkeypatch.setattr(network, "NETNS", tmp_path / "netns")
    monkeypatch.setattr(network, "links", lambda _: {})
    monkeypatch.setattr(processes, "cgroups", lambda _: [])
    monkeypatch.setattr(limits, "NSPAWN", tmp_path / "nspawn")
    monkeypatch.setattr(limits, "leave_as_found", lambda: None)
    where = nspawn_site.Site(lab_dir, NAME)
    base.write(where.owner_file, f"{lab_dir}\n")
    for name in ("server1", "client1"):
        directory = where.host_directory(name)
        base.write(directory / "upper" / "etc" / "hostname", f"{name}\n")
        base.write(directory / "host.json", "{}\n")
        (directory / "lower").symlink_to(lab_dir / "image" / "1" / "rootfs")
    for name in ("lab.json", "etc-hosts", "supervise.sh"):
        base.write(where.state / name, "{}\n")
    return where


def test_making_and_removing_virtual_machines_leaves_nspawn_hosts_alone(
    nspawn_lab: Any, vm_module: Module, lab_dir: Path
) -> None:
    before = tree(nspawn_lab.state)
    assert vm_module(*HOSTS)["changed"]
    assert tree(nspawn_lab.state) == before
    assert vm_module(state="absent")["removed"] == ["client1", "server1"]
    assert not site.Site(lab_dir, NAME).state.exists()
    assert tree(nspawn_lab.state) == before


def test_where_there_are_no_virtual_machines_nspawn_hosts_are_not_taken_for_them(
    nspawn_lab: Any, vm_module: Module
) -> None:
    before = tree(nspawn_lab.state)
    assert not vm_module(state="absent")["changed"]
    assert tree(nspawn_lab.state) == before


def test_removing_nspawn_hosts_leaves_virtual_machines_alone(
    nspawn_lab: Any, vm_module: Module, lab_dir: Path
) -> None:
    vm_module(*HOSTS)
    machines = site.Site(lab_dir, NAME).state
    before = tree(machines)
    assert {"lab.json", "hosts/client1/disk.qcow2"} <= set(before)
    assert {"client1", "server1", "owner file"} <= set(nspawn_site.unmake(nspawn_lab, 0))
    assert not nspawn_lab.state.exists()
    assert tree(machines) == before
    # Removed once more, with nothing of it left, nspawn finds no hosts in the other's directory.
    assert nspawn_site.what_is_there(nspawn_lab) == []
    assert nspawn_site.unmake(nspawn_lab, 0) == []
    assert tree(machines) == before
    assert not vm_module(*HOSTS)["changed"]


@pytest.mark.parametrize("name", [f"{NAME}.vm", "..", "image"])
def test_nspawn_removes_nothing_under_a_name_that_is_none(lab_dir: Path, name: str) -> None:
    with pytest.raises(layout.LabError, match="lab_name"):
        nspawn_site.Site(lab_dir, name)
