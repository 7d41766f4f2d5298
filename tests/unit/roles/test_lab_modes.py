"""Who may enter what a lab keeps on this machine: hosts' files have setuid programs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tune_loader import load
from vm_parts import NAME, Module, base, host

load("lab_image", "module_utils", "connlab_recipe")
image = load("lab_image", "module_utils", "connlab_image")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE0"


@pytest.fixture(autouse=True)
def usual_mask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """State as an earlier version has left it: everybody enters."""
    made = tmp_path / "checkout" / ".lab"
    for name in (
        "image/0123456789abcdef/rootfs/usr/bin",
        "image/.build-fedcba9876543210/rootfs/usr/bin",
        "connlab/hosts/server1/upper/usr/bin",
        "connlab-vm.vm/hosts/server1",
        "ssh",
    ):
        (made / name).mkdir(parents=True)
    (made / "image/0123456789abcdef/manifest.json").write_text("{}")
    for name in ("id_ed25519", "ssh_host_ed25519_key"):
        (made / "ssh" / name).write_text("secret")
        (made / "ssh" / f"{name}.pub").write_text(KEY)
    for path in [made, *made.rglob("*")]:
        path.chmod(0o755)
    return made


def maker(lab: Path, monkeypatch: pytest.MonkeyPatch, check_mode: bool = False) -> Any:
    """The image of a lab whose recipe is that of the image that is there."""
    monkeypatch.setattr(image, "recipe_hash", lambda _: "0123456789abcdef")
    monkeypatch.setattr(image.Image, "_recipe", lambda _: {})
    given = {"mgmt_prefix": "192.0.2.0/24", "hosts": 1, "ports": [], "kernel": False, "keep": 2}
    return image.Image({"lab_dir": str(lab), **given}, check_mode)


CLOSED = [
    "",
    "ssh",
    "image",
    "image/0123456789abcdef/rootfs",
    "image/.build-fedcba9876543210/rootfs",
    "connlab/hosts",
    "connlab-vm.vm/hosts",
]


def test_what_is_there_already_is_closed_off(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert maker(lab, monkeypatch).ensure()["changed"]
    assert {name: mode(lab / name) for name in CLOSED} == dict.fromkeys(CLOSED, 0o700)
    assert mode(lab / "ssh" / "id_ed25519") == mode(lab / "ssh" / "ssh_host_ed25519_key") == 0o600
    assert not maker(lab, monkeypatch).ensure()["changed"]


def test_what_virtual_machines_run_from_stays_their_owners(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker(lab, monkeypatch).ensure()
    assert mode(lab / "image" / "0123456789abcdef") == 0o755
    assert mode(lab / "image" / "0123456789abcdef" / "rootfs" / "usr") == 0o755


def test_check_mode_says_so_and_closes_nothing(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker(lab, monkeypatch)._write_known_hosts(["192.0.2.1"])
    assert maker(lab, monkeypatch, check_mode=True).ensure()["changed"]
    assert {mode(lab / name) for name in CLOSED} == {0o755}


def test_what_belongs_to_another_user_is_left_alone(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image.os, "geteuid", lambda: os.getuid() + 1000)
    assert not maker(lab, monkeypatch)._close_off()
    assert {mode(lab / name) for name in CLOSED} == {0o755}


def test_a_link_is_not_followed(lab: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir(mode=0o755)
    (lab / "other").mkdir()
    (lab / "other" / "hosts").symlink_to(tmp_path / "etc")
    maker(lab, monkeypatch).ensure()
    assert mode(tmp_path / "etc") == 0o755


def test_a_new_lab_is_closed_off_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = maker(tmp_path / ".lab", monkeypatch)
    assert made._close_off() is False
    assert {mode(tmp_path / ".lab" / name) for name in ("", "ssh", "image")} == {0o700}


def test_a_tree_is_closed_off_once_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = maker(tmp_path / ".lab", monkeypatch)
    made._close_off()
    seen: dict[str, int] = {}

    def bootstrap(_: Any, work: Path, lock: int) -> None:
        seen["work"] = mode(work)
        (work / "rootfs").mkdir(mode=0o755)
        (work / "sources.list").write_text("")

    monkeypatch.setattr(image.os, "geteuid", lambda: 0)
    monkeypatch.setattr(made, "_check_space", lambda: None)
    monkeypatch.setattr(made, "_bootstrap", bootstrap)
    monkeypatch.setattr(made, "_write_manifest", lambda *_: None)
    made._build({}, tmp_path / ".lab" / "image" / "0123456789abcdef")
    assert seen["work"] == 0o700
    built = tmp_path / ".lab" / "image" / "0123456789abcdef"
    assert (mode(built), mode(built / "rootfs")) == (0o755, 0o700)


def test_a_machines_disk_and_monitor_are_its_owners_alone(vm_module: Module, lab_dir: Path) -> None:
    lab_dir.chmod(0o755)
    assert vm_module(host("server1"))["changed"]
    assert (mode(lab_dir), mode(lab_dir / f"{NAME}.vm" / "hosts")) == (0o700, 0o700)


@pytest.mark.parametrize("made", [None, 0o755, 0o777])
def test_a_private_directory_is_its_owners_alone(made: int | None, tmp_path: Path) -> None:
    path = tmp_path / "lab" / "hosts"
    if made is not None:
        path.mkdir(parents=True)
        path.chmod(made)
    assert not base.is_private(path)
    base.private(path)
    assert base.is_private(path) and mode(path) == 0o700
    assert mode(path.parent) == 0o755
