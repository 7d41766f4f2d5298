from pathlib import Path

import pytest
from vm_parts import NOT_INSTALLED, Machine, OnPath, kvm, layout, refusal

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LINUX = "echo '[    0.000000] Linux version 6.1.0-44-cloud-amd64'"


@pytest.fixture(autouse=True)
def dev_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/kvm can be opened, whether this machine has one or not."""
    monkeypatch.setattr(kvm.os, "access", lambda *_: True)


def kvm_or_not(image: Path, lab_dir: Path) -> tuple[str, str]:
    found: tuple[str, str] = kvm.choose("auto", image, lab_dir)
    return found


@pytest.mark.parametrize("kind", ["kvm", "tcg"])
def test_a_named_accelerator_is_taken_without_a_trial(
    lab_dir: Path, vm_image: Path, vm_machine: Machine, kind: str
) -> None:
    assert kvm.choose(kind, vm_image, lab_dir) == (kind, "")
    assert vm_machine.done == []
    assert not (lab_dir / "kvm.json").exists()


@pytest.mark.parametrize(("why", "kind"), [("", "kvm"), ("QEMU ended with 1", "tcg")])
def test_a_trial_boot_is_made_once(
    lab_dir: Path, vm_image: Path, vm_machine: Machine, why: str, kind: str
) -> None:
    vm_machine.why_not_kvm = why
    assert kvm_or_not(vm_image, lab_dir) == (kind, why)
    vm_machine.why_not_kvm = "would not be asked"
    assert kvm_or_not(vm_image, lab_dir) == (kind, why)
    assert vm_machine.did("probe") == [vm_image.name]


def test_a_trial_boot_is_made_again_after_the_machines_own_boot(
    lab_dir: Path, vm_image: Path, vm_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = "one"
    read = kvm.read
    monkeypatch.setattr(kvm, "read", lambda path: boot if path == BOOT_ID else read(path))
    kvm_or_not(vm_image, lab_dir)
    boot = "two"
    vm_machine.why_not_kvm = ""
    assert kvm_or_not(vm_image, lab_dir) == ("kvm", "")
    assert len(vm_machine.did("probe")) == 2


def test_a_trial_boot_is_made_again_for_another_image_and_for_another_user(
    lab_dir: Path, vm_image: Path, vm_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = vm_image.with_name("fedcba9876543210")
    kvm_or_not(vm_image, lab_dir)
    kvm_or_not(other, lab_dir)
    monkeypatch.setattr(kvm.os, "geteuid", lambda: 4242)
    kvm_or_not(other, lab_dir)
    assert vm_machine.did("probe") == [vm_image.name, other.name, other.name]


@pytest.mark.parametrize("text", ["", "{", '{"key": null}', "\udcff"])
def test_a_note_that_cannot_be_read_is_made_anew(
    lab_dir: Path, vm_image: Path, vm_machine: Machine, text: str
) -> None:
    (lab_dir / "kvm.json").write_text(text, errors="surrogateescape")
    assert kvm_or_not(vm_image, lab_dir) == ("tcg", "no")
    assert kvm_or_not(vm_image, lab_dir) == ("tcg", "no")
    assert len(vm_machine.did("probe")) == 1


def test_a_trial_that_could_not_be_made_is_not_noted(
    lab_dir: Path, vm_image: Path, vm_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: Path) -> str:
        raise layout.LabError("not installed")

    with monkeypatch.context() as patch:
        patch.setattr(kvm, "why_not_kvm", missing)
        assert refusal(kvm_or_not, vm_image, lab_dir) == "not installed"
    assert kvm_or_not(vm_image, lab_dir) == ("tcg", "no")


def test_dev_kvm_that_can_be_opened_by_now_is_tried(
    lab_dir: Path, qemu_on_path: OnPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu_on_path(LINUX)
    image = Path("/lab/image/1")
    monkeypatch.setattr(kvm.os, "access", lambda *_: False)
    assert kvm_or_not(image, lab_dir) == ("tcg", "/dev/kvm cannot be opened")
    monkeypatch.setattr(kvm.os, "access", lambda *_: True)
    assert kvm_or_not(image, lab_dir) == ("kvm", "")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (LINUX, ""),
        (f"echo 'qemu: warning: host does not support x' >&2; {LINUX}", ""),
        ("echo SeaBIOS", "QEMU ended with 0"),
        ("exit 3", "QEMU ended with 3"),
        (f"{LINUX}; exit 3", "QEMU ended with 3"),
        ("kill -ABRT $$", "QEMU ended with -6"),
        (
            "printf '\\nqemu: error: failed to set MSR 0x10a to 0x69\\nAssertion\\n' >&2; "
            "kill -ABRT $$",
            "qemu: error: failed to set MSR 0x10a to 0x69",
        ),
        ("printf 'qemu: \\377\\n' >&2; exit 1", "qemu: \N{REPLACEMENT CHARACTER}"),
    ],
)
def test_kvm_is_used_only_where_the_guests_kernel_gets_through_its_boot(
    tmp_path: Path, qemu_on_path: OnPath, script: str, why: str
) -> None:
    qemu_on_path(script)
    assert kvm.why_not_kvm(tmp_path) == why


def test_a_guest_that_hangs_under_kvm_is_ended(tmp_path: Path, qemu_on_path: OnPath) -> None:
    qemu_on_path(f"echo $$ > {tmp_path}/pid; exec sleep 60")
    why = kvm.why_not_kvm(tmp_path, 0.5)
    assert why.startswith("the guest's kernel did not get through its boot within ")
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_the_trial_boots_the_images_kernel_under_kvm_and_ends_by_itself(
    tmp_path: Path, qemu_on_path: OnPath
) -> None:
    qemu_on_path(f'for word; do echo "$word"; done > {tmp_path}/words; {LINUX}')
    assert kvm.why_not_kvm(Path("/lab/image/1")) == ""
    words = (tmp_path / "words").read_text().splitlines()
    assert words[words.index("-kernel") + 1] == "/lab/image/1/vmlinuz"
    assert words[words.index("-accel") + 1] == "kvm"
    assert "panic=-1" in words[words.index("-append") + 1].split()
    assert {"-no-reboot", "-nodefaults"} <= set(words)


def test_without_dev_kvm_nothing_is_tried(
    tmp_path: Path, qemu_on_path: OnPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu_on_path(f": > {tmp_path}/tried")
    monkeypatch.setattr(kvm.os, "access", lambda path, _: path != "/dev/kvm")
    assert kvm.why_not_kvm(tmp_path) == "/dev/kvm cannot be opened"
    assert not (tmp_path / "tried").exists()


def test_without_qemu_the_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refusal(kvm.why_not_kvm, tmp_path) == NOT_INSTALLED
