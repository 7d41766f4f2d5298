import errno
import os
from pathlib import Path
from typing import Any

import pytest
from vm_parts import NAME, Machine, Module, host, making


def test_the_module_makes_a_lab_once_and_removes_it_once(vm_module: Module) -> None:
    made = vm_module(host("server1"), host("client1"))
    assert made["changed"]
    assert made["hosts"]["client1"]["status"] == "running"
    assert (made["accelerator"], made["why_not_kvm"]) == ("tcg", "")
    assert not vm_module(host("server1"), host("client1"))["changed"]
    assert vm_module(state="absent")["removed"] == ["client1", "server1"]
    assert not vm_module(state="absent")["changed"]


def test_the_module_says_why_kvm_is_not_used(vm_module: Module) -> None:
    made = vm_module(host("server1"), accelerator="auto")
    assert (made["accelerator"], made["why_not_kvm"]) == ("tcg", "no")


def test_check_mode_says_it_and_does_nothing(
    vm_module: Module, vm_machine: Machine, lab_dir: Path
) -> None:
    assert vm_module(host("server1"), _ansible_check_mode=True)["changed"]
    assert vm_machine.done == []
    assert not (lab_dir / f"{NAME}.vm").exists()
    vm_module(host("server1"))
    vm_machine.done.clear()
    assert vm_module(state="absent", _ansible_check_mode=True)["removed"] == ["server1"]
    assert vm_machine.done == []
    assert (lab_dir / f"{NAME}.vm").exists()


def test_what_fails_is_said_in_one_line(vm_module: Module, vm_image: Path) -> None:
    (vm_image / "disk.raw").unlink()
    failed = vm_module(host("server1"))
    assert failed["failed"]
    assert failed["msg"] == (
        f"lab_vm: image {vm_image}: no disk.raw: build it with lab_image_kernel=true"
    )


@pytest.mark.parametrize("name", ["..", ".", "", "../other", "image"])
def test_a_lab_whose_name_is_none_is_not_removed(
    vm_module: Module, lab_dir: Path, name: str
) -> None:
    (lab_dir.parent / "other").mkdir()
    keep = [lab_dir / "id_ed25519", lab_dir.parent / "README.md", lab_dir.parent / "other" / "x"]
    for path in keep:
        path.write_text("kept")
    failed = vm_module(state="absent", name=name)
    assert all(path.exists() for path in keep)
    assert "lab_name" in failed["msg"]


def test_a_full_disk_is_said_in_one_line(
    vm_module: Module, vm_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(making, "write", full)
    failed = vm_module(host("server1"))
    assert failed["msg"].startswith("lab_vm: ")
    assert "No space left on device" in failed["msg"]
    assert vm_machine.running == {}
