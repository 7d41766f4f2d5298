"""Fixtures that several files with tests of the role lab_vm share."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from tune_loader import load
from vm_parts import NAME, Machine, Make, Module, OnPath, fleet, kvm, making, parameters, qemu, site

lab_vm = load("lab_vm", "library", "lab_vm")


@pytest.fixture
def lab_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "checkout" / ".lab"
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def vm_image(lab_dir: Path) -> Path:
    """An image as lab_image makes it."""
    directory = lab_dir / "image" / "0123456789abcdef"
    (directory / "rootfs").mkdir(parents=True)
    for name in ("vmlinuz", "initrd.img", "disk.raw"):
        (directory / name).write_text(name)
    return directory


@pytest.fixture
def vm_machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """No QEMU is started and no process is touched."""
    fake = Machine()
    monkeypatch.setattr(qemu, "start", fake.start)
    monkeypatch.setattr(qemu, "await_listening", fake.await_listening)
    monkeypatch.setattr(qemu, "stop", fake.stop)
    monkeypatch.setattr(qemu, "pid", fake.pid)
    monkeypatch.setattr(qemu, "answers", fake.answers)
    monkeypatch.setattr(qemu, "port_is_free", lambda _: True)
    monkeypatch.setattr(kvm, "why_not_kvm", fake.probe)
    monkeypatch.setattr(making, "run", fake.run)
    monkeypatch.setattr(making, "_available_mib", lambda: fake.available)
    monkeypatch.setattr(making, "_resident_mib", lambda pid: fake.resident.get(pid, 0))
    return fake


@pytest.fixture
def vm_module(
    lab_dir: Path, vm_image: Path, vm_machine: Machine, capsys: pytest.CaptureFixture[str]
) -> Module:
    def called(*hosts: dict[str, Any], **other: Any) -> dict[str, Any]:
        usual = {
            **parameters(*hosts),
            "lab_dir": str(lab_dir),
            "image": str(vm_image),
            "accelerator": "tcg",
            "boot_timeout": 1,
            "stop_timeout": 1,
        }
        with patch_module_args({**usual, **other}), pytest.raises(SystemExit):
            lab_vm.main()
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return called


@pytest.fixture
def qemu_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnPath:
    """Put a script into PATH as qemu-system-x86_64."""

    def put(script: str) -> Path:
        fake = tmp_path / "bin" / qemu.QEMU
        fake.parent.mkdir()
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
        return fake

    return put


@pytest.fixture
def vm_maker(lab_dir: Path, vm_image: Path, vm_machine: Machine) -> Make:
    def made(lab: Any = None, kind: str = "tcg", path: Path = vm_image) -> Any:
        where = site.Site(lab_dir, NAME)
        return making.Maker(where, fleet() if lab is None else lab, path, kind, lab_dir)

    return made
