import errno
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from tune_loader import load
from vm_parts import fleet, host, layout, listening, parameters, plan, qemu, site

lab_vm = load("lab_vm", "library", "lab_vm")

NAME = "connlab-vm"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PORT_IS_FREE = qemu.port_is_free


@pytest.fixture
def lab_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "checkout" / ".lab"
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def image(lab_dir: Path) -> Path:
    """An image as lab_image makes it."""
    directory = lab_dir / "image" / "0123456789abcdef"
    (directory / "rootfs").mkdir(parents=True)
    for name in ("vmlinuz", "initrd.img", "disk.raw"):
        (directory / name).write_text(name)
    return directory


class Machine:
    """The machine underneath: what runs on it, and what was done to it, in order."""

    def __init__(self) -> None:
        self.running: dict[str, int] = {}
        self.done: list[tuple[str, Any]] = []
        self.available = 1 << 20
        self.resident: dict[int, int] = {}
        self.silent: set[int] = set()
        self.fails: dict[str, BaseException] = {}
        self.why_not_kvm = "no"

    def start(self, directory: Path, words: list[str]) -> None:
        self.done.append(("start", directory.name))
        (directory / "words").write_text(json.dumps(words))
        if directory.name in self.fails:
            raise self.fails[directory.name]
        self.running[directory.name] = 1000 + len(self.running)

    def stop(self, directories: list[Path], limit: float) -> None:
        self.done.append(("stop", ([directory.name for directory in directories], limit)))
        for directory in directories:
            self.running.pop(directory.name, None)

    def pid(self, directory: Path) -> int | None:
        return self.running.get(directory.name)

    def answers(self, port: int, _: float) -> bool:
        return port not in self.silent

    def probe(self, image: Path) -> str:
        self.done.append(("probe", image.name))
        return self.why_not_kvm

    def run(self, *words: str | Path) -> str:
        self.done.append(("run", [str(word) for word in words]))
        Path(words[-1]).write_text("disk")
        return ""

    def did(self, kind: str) -> list[Any]:
        return [what for how, what in self.done if how == kind]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """No QEMU is started and no process is touched."""
    fake = Machine()
    monkeypatch.setattr(qemu, "start", fake.start)
    monkeypatch.setattr(qemu, "stop", fake.stop)
    monkeypatch.setattr(qemu, "pid", fake.pid)
    monkeypatch.setattr(qemu, "answers", fake.answers)
    monkeypatch.setattr(qemu, "port_is_free", lambda _: True)
    monkeypatch.setattr(qemu, "why_not_kvm", fake.probe)
    monkeypatch.setattr(site, "run", fake.run)
    monkeypatch.setattr(site, "_available_mib", lambda: fake.available)
    monkeypatch.setattr(site, "_resident_mib", lambda pid: fake.resident.get(pid, 0))
    return fake


Make = Callable[..., Any]


@pytest.fixture
def maker(lab_dir: Path, image: Path, machine: Machine) -> Make:
    def made(lab: Any = None, kind: str = "tcg", path: Path = image) -> Any:
        where = site.Site(lab_dir, NAME)
        return site.Maker(where, fleet() if lab is None else lab, path, kind, lab_dir)

    return made


def refusal(act: Callable[[], Any]) -> str:
    with pytest.raises(layout.LabError) as refused:
        act()
    return str(refused.value)


# What there is.


def test_where_nothing_is_nothing_is_found(lab_dir: Path, machine: Machine) -> None:
    assert site.Site(lab_dir, NAME).look() == {}


@pytest.mark.parametrize(
    ("note", "image", "configuration"),
    [
        ('{"image": "/lab/image/1", "configuration": "c0ffee"}', "/lab/image/1", "c0ffee"),
        ("{}", "", ""),
        ("{half", "", ""),
        (None, "", ""),
    ],
)
def test_a_machine_is_as_its_note_says(
    lab_dir: Path, machine: Machine, note: str | None, image: str, configuration: str
) -> None:
    where = site.Site(lab_dir, NAME)
    directory = where.directory("server1")
    directory.mkdir(parents=True)
    where.directory("client1").mkdir()
    machine.running["client1"] = 7
    if note is not None:
        (directory / "vm.json").write_text(note)
    assert where.look() == {
        "client1": plan.Found(alive=True, traces=True),
        "server1": plan.Found(False, image, configuration, traces=True),
    }


# Removed.


def test_the_whole_lab_is_removed_and_that_twice(maker: Make, machine: Machine) -> None:
    made = maker()
    made.make(10, 10)
    assert made.site.unmake(30) == ["client1", "server1"]
    assert machine.did("stop")[-1] == (["client1", "server1"], 30)
    assert machine.running == {}
    assert not made.site.state.exists()
    assert made.site.unmake(30) == []


def test_the_image_and_the_keys_outlive_the_lab(maker: Make, lab_dir: Path, image: Path) -> None:
    made = maker()
    made.make(10, 10)
    made.site.unmake(0)
    assert [path.name for path in lab_dir.iterdir()] == ["image"]
    assert {path.name for path in image.iterdir()} == {
        "rootfs",
        "vmlinuz",
        "initrd.img",
        "disk.raw",
    }


def test_a_state_directory_alone_is_removed_and_said(lab_dir: Path, machine: Machine) -> None:
    where = site.Site(lab_dir, NAME)
    where.state.mkdir()
    assert where.unmake(0) == ["state directory"]
    assert not where.state.exists()


# The guest's files.


def test_files_come_as_a_tar_that_the_guest_unpacks() -> None:
    made = {"etc/hosts": "198.18.0.1 sérver1\n", "etc/hostname": "server1\n"}
    with tarfile.open(fileobj=io.BytesIO(site._tar(made))) as archive:
        entries = archive.getmembers()
        texts = {entry.name: archive.extractfile(entry) for entry in entries}
        assert {name: file.read().decode() for name, file in texts.items() if file} == made
    assert all(entry.isreg() and entry.mode == 0o644 for entry in entries)
    assert all((entry.uid, entry.gid) == (0, 0) for entry in entries)


# The accelerator.


def kvm_or_not(image: Path, lab_dir: Path) -> tuple[str, str]:
    found: tuple[str, str] = site._accelerator("auto", image, lab_dir)
    return found


@pytest.mark.parametrize("kind", ["kvm", "tcg"])
def test_a_named_accelerator_is_taken_without_a_trial(
    lab_dir: Path, image: Path, machine: Machine, kind: str
) -> None:
    assert site._accelerator(kind, image, lab_dir) == (kind, "")
    assert machine.done == []
    assert not (lab_dir / "kvm.json").exists()


@pytest.mark.parametrize(("why", "kind"), [("", "kvm"), ("QEMU ended with 1", "tcg")])
def test_a_trial_boot_is_made_once(
    lab_dir: Path, image: Path, machine: Machine, why: str, kind: str
) -> None:
    machine.why_not_kvm = why
    assert kvm_or_not(image, lab_dir) == (kind, why)
    machine.why_not_kvm = "would not be asked"
    assert kvm_or_not(image, lab_dir) == (kind, why)
    assert machine.did("probe") == [image.name]


def test_a_trial_boot_is_made_again_after_the_machines_own_boot(
    lab_dir: Path, image: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = "one"
    read = site.read
    monkeypatch.setattr(site, "read", lambda path: boot if path == BOOT_ID else read(path))
    kvm_or_not(image, lab_dir)
    boot = "two"
    machine.why_not_kvm = ""
    assert kvm_or_not(image, lab_dir) == ("kvm", "")
    assert len(machine.did("probe")) == 2


def test_a_trial_boot_is_made_again_for_another_image_and_for_another_user(
    lab_dir: Path, image: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = image.with_name("fedcba9876543210")
    kvm_or_not(image, lab_dir)
    kvm_or_not(other, lab_dir)
    monkeypatch.setattr(site.os, "geteuid", lambda: 4242)
    kvm_or_not(other, lab_dir)
    assert machine.did("probe") == [image.name, other.name, other.name]


@pytest.mark.parametrize("text", ["", "{", '{"key": null}', "\udcff"])
def test_a_note_that_cannot_be_read_is_made_anew(
    lab_dir: Path, image: Path, machine: Machine, text: str
) -> None:
    (lab_dir / "kvm.json").write_text(text, errors="surrogateescape")
    assert kvm_or_not(image, lab_dir) == ("tcg", "no")
    assert kvm_or_not(image, lab_dir) == ("tcg", "no")
    assert len(machine.did("probe")) == 1


def test_a_trial_that_could_not_be_made_is_not_noted(
    lab_dir: Path, image: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: Path) -> str:
        raise layout.LabError("not installed")

    with monkeypatch.context() as patch:
        patch.setattr(qemu, "why_not_kvm", missing)
        assert refusal(lambda: kvm_or_not(image, lab_dir)) == "not installed"
    assert kvm_or_not(image, lab_dir) == ("tcg", "no")


def test_dev_kvm_that_can_be_opened_by_now_is_tried(
    lab_dir: Path, image: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / qemu.QEMU
    fake.write_text("#!/bin/sh\necho Linux version 6.1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(qemu.os, "access", lambda *_: False)
    assert kvm_or_not(image, lab_dir) == ("tcg", "/dev/kvm cannot be opened")
    monkeypatch.setattr(qemu.os, "access", lambda *_: True)
    assert kvm_or_not(image, lab_dir) == ("kvm", "")


# Refused before anything is touched.


@pytest.mark.parametrize(
    "missing",
    [["vmlinuz"], ["initrd.img"], ["disk.raw"], ["vmlinuz", "initrd.img", "disk.raw"]],
)
def test_an_image_that_is_not_whole_is_refused(
    maker: Make, machine: Machine, image: Path, missing: list[str]
) -> None:
    for name in missing:
        (image / name).unlink()
    assert refusal(lambda: maker(kind="auto")) == (
        f"image {image}: no {', '.join(missing)}: build it with lab_image_kernel=true"
    )
    assert machine.done == []


def test_a_port_in_use_is_refused(
    maker: Make, machine: Machine, lab_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever listens on the server's port on this machine is not what is asked.
    monkeypatch.setattr(qemu, "port_is_free", lambda port: port == 22201 or PORT_IS_FREE(port))
    with listening() as listener:
        port = listener.getsockname()[1]
        made = maker(plan.lay_out(parameters(host("server1"), host("client1", port=port))))
        assert refusal(made.check) == (
            f"host client1: port {port} of 127.0.0.1 is in use: free it, or choose "
            "another lab_ssh_port_base"
        )
    made.check()
    assert machine.done == []
    assert not (lab_dir / NAME).exists()


def test_the_ports_of_machines_that_run_are_in_use_by_themselves(
    maker: Make, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker().make(10, 10)
    monkeypatch.setattr(qemu, "port_is_free", lambda _: False)
    bigger = maker(fleet(boot_args=["thash_entries=4096"]))
    assert bigger.plan.stop == ["server1", "client1"]
    bigger.check()
    maker().check()


def test_a_port_in_use_is_refused_also_for_a_machine_that_changes_to_it(
    maker: Make, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker().make(10, 10)
    moved = maker(plan.lay_out(parameters(host("server1"), host("client1", port=22299))))
    monkeypatch.setattr(qemu, "port_is_free", lambda port: port != 22299)
    assert "port 22299 of 127.0.0.1 is in use" in refusal(moved.check)


def test_a_port_that_a_machine_gives_up_may_be_taken_by_another(
    maker: Make, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker().make(10, 10)
    hosts = [host("server1", port=22200), host("client1", port=22201), host("client2", port=22202)]
    shifted = maker(plan.lay_out(parameters(*hosts)))
    assert shifted.plan.stop == ["server1", "client1"]
    # Both are those of machines that are stopped first.
    monkeypatch.setattr(qemu, "port_is_free", lambda port: port not in (22201, 22202))
    shifted.check()


def test_too_little_memory_is_refused(maker: Make, machine: Machine, lab_dir: Path) -> None:
    machine.available = 3159
    made = maker()
    assert refusal(made.check) == (
        "server1 1024 + client1 1024 MiB, 300 MiB for each QEMU and 512 MiB to spare are "
        "3160 MiB, and MemAvailable is 3159 MiB: lower connections or lab_vm_memory_mib, "
        "or free memory"
    )
    machine.available = 3160
    made.check()
    assert machine.done == []
    assert not (lab_dir / NAME).exists()


def test_memory_of_machines_that_are_stopped_first_counts_as_free(
    maker: Make, machine: Machine
) -> None:
    maker(fleet(3)).make(10, 10)
    machine.available = 60
    machine.resident = {machine.running["server1"]: 1200, machine.running["client1"]: 1000}
    machine.resident[machine.running["client2"]] = 900
    fewer = maker(fleet(2))
    assert fewer.plan.remove == ["client2"]
    fewer.check()
    machine.available = 59
    assert "MemAvailable is 3159 MiB" in refusal(fewer.check)


def test_machines_that_stay_need_no_more_memory(maker: Make, machine: Machine) -> None:
    maker().make(10, 10)
    machine.available = 0
    maker().check()


def test_memory_is_read_from_this_machine() -> None:
    text = Path("/proc/meminfo").read_text()
    total = int(text.split("MemTotal:")[1].split()[0]) >> 10
    assert 0 < site._available_mib() <= total
    assert 0 < site._resident_mib(os.getpid()) < total
    assert site._resident_mib(None) == 0


# Made.


def test_machines_are_made_from_nothing(maker: Make, machine: Machine, image: Path) -> None:
    made = maker()
    made.make(10, 10)
    assert machine.did("start") == ["server1", "client1"]
    for vm in made.fleet.vms:
        directory = made.site.directory(vm.name)
        words = plan.qemu_arguments(made.fleet, vm, "tcg", str(image), str(directory))
        assert json.loads((directory / "words").read_text()) == words
        # By this link lab_image knows that the image is in use.
        assert (directory / "lower").resolve() == image / "rootfs"
        with tarfile.open(directory / "files.tar") as archive:
            assert set(archive.getnames()) == set(plan.guest_files(made.fleet, vm))
    disk = made.site.directory("server1") / "disk.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", f"{image}/disk.raw", "-F", "raw"]
    assert machine.did("run")[0] == [*create, str(disk)]


def test_made_twice_nothing_is_done(maker: Make, machine: Machine) -> None:
    maker().make(10, 10)
    machine.done.clear()
    again = maker()
    assert again.plan.empty
    assert again.answers()
    assert machine.done == []


def test_a_machine_that_starts_anew_keeps_its_disk_and_nothing_stale(
    maker: Make, machine: Machine
) -> None:
    made = maker()
    made.make(10, 10)
    directory = made.site.directory("client1")
    for name in ("client2.sock", "console.log"):
        (directory / name).write_text("old")
    (directory / "disk.qcow2").write_text("written to")
    del machine.running["client1"]
    machine.done.clear()
    maker().make(10, 10)
    assert machine.did("start") == ["client1"]
    assert machine.did("run") == []
    assert (directory / "disk.qcow2").read_text() == "written to"
    assert not list(directory.glob("*.sock"))
    assert not (directory / "console.log").exists()


def test_another_image_means_a_new_disk(
    maker: Make, machine: Machine, image: Path, lab_dir: Path
) -> None:
    maker().make(10, 10)
    newer = image.rename(image.with_name("fedcba9876543210"))
    machine.done.clear()
    made = maker(path=newer)
    made.make(10, 15)
    assert machine.did("stop")[:2] == [([], 15), (["server1", "client1"], 15)]
    disks = [made.site.directory(name) / "disk.qcow2" for name in ("server1", "client1")]
    assert [(words[6], Path(words[-1])) for words in machine.did("run")] == [
        (f"{newer}/disk.raw", disk) for disk in disks
    ]
    assert (disks[0].parent / "lower").resolve() == newer / "rootfs"
    assert maker(path=newer).plan.empty


def test_a_machine_that_is_not_wanted_is_removed_before_others_start(
    maker: Make, machine: Machine
) -> None:
    maker(fleet(3)).make(10, 10)
    machine.done.clear()
    made = maker(fleet(2))
    made.make(10, 20)
    assert machine.done[0] == ("stop", (["client2"], 20))
    assert not made.site.directory("client2").exists()
    assert sorted(machine.running) == ["client1", "server1"]


@pytest.mark.parametrize("error", [layout.LabError("does not start"), KeyboardInterrupt()])
def test_what_was_started_is_ended_when_another_does_not_start(
    maker: Make, machine: Machine, error: BaseException
) -> None:
    maker(fleet(2)).make(10, 10)
    machine.running.pop("server1")
    machine.fails["client1"] = error
    machine.done.clear()
    with pytest.raises(type(error)) as raised:
        maker(fleet(2)).make(10, 10)
    assert raised.value is error
    assert machine.done[-1] == ("stop", (["server1", "client1"], 0))
    assert machine.running == {}


def test_what_ran_before_runs_on_when_another_does_not_start(maker: Make, machine: Machine) -> None:
    maker(fleet(3)).make(10, 10)
    machine.running.pop("client2")
    machine.fails["client2"] = layout.LabError("does not start")
    assert refusal(lambda: maker(fleet(3)).make(10, 10)) == "does not start"
    assert machine.done[-1] == ("stop", (["client2"], 0))
    assert sorted(machine.running) == ["client1", "server1"]


def boots_no_further(made: Any, machine: Machine, console: bytes, **gone: bool) -> str:
    start = qemu.start

    def started(directory: Path, words: list[str]) -> None:
        start(directory, words)
        if directory.name == "client1":
            (directory / "console.log").write_bytes(console)
            if gone:
                del machine.running["client1"]

    machine.silent = {22202}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qemu, "start", started)
        return refusal(lambda: made.make(0, 0))


CONSOLE = b"[    1.0] \x1b[31mKernel panic\x1b[0m - not syncing\r\n\r\n[    1.1] ---[ end\r\n"


@pytest.mark.parametrize(
    ("console", "said"),
    [
        (CONSOLE, "[    1.0] Kernel panic - not syncing / [    1.1] ---[ end"),
        (b"", "empty"),
    ],
)
def test_a_guest_that_does_not_boot_is_named_with_its_last_words(
    maker: Make, machine: Machine, console: bytes, said: str
) -> None:
    made = maker()
    path = made.site.directory("client1") / "console.log"
    assert boots_no_further(made, machine, console) == (
        "host client1: no SSH greeting on 127.0.0.1 port 22202 within 0 s; "
        f"console ({path}): {said}"
    )
    assert machine.running == {}
    assert path.read_bytes() == console


def test_a_guest_whose_qemu_ended_is_named_at_once(maker: Make, machine: Machine) -> None:
    made = maker()
    path = made.site.directory("client1") / "console.log"
    assert boots_no_further(made, machine, b"I/O error\n", gone=True) == (
        f"host client1: its QEMU ended; console ({path}): I/O error"
    )


def test_a_console_may_hold_any_bytes(maker: Make, machine: Machine) -> None:
    said = boots_no_further(maker(), machine, b"\xff\xfe Kernel panic\n")
    assert said.endswith("Kernel panic")


def test_a_machine_that_runs_but_does_not_answer_is_waited_for(
    maker: Make, machine: Machine
) -> None:
    maker().make(10, 10)
    machine.silent = {22202}
    machine.done.clear()
    made = maker()
    assert made.plan.empty
    assert not made.answers()
    assert "host client1: no SSH greeting" in refusal(lambda: made.make(0, 10))
    # It was not started here, so it is not ended here.
    assert sorted(machine.running) == ["client1", "server1"]


def test_the_report_says_what_was_done_and_why(maker: Make, machine: Machine) -> None:
    maker().make(10, 10)
    del machine.running["client1"]
    made = maker()
    before = made.report()
    made.make(10, 10)
    assert before["client1"]["status"] == "absent"
    assert made.report() == {
        "server1": {
            "status": "running",
            "action": "none",
            "reason": "",
            "port": 22201,
            "memory_mib": 1024,
            "cpus": 1,
            "data": ["198.18.0.1"],
        },
        "client1": {
            "status": "running",
            "action": "started",
            "reason": "it was not running",
            "port": 22202,
            "memory_mib": 1024,
            "cpus": 1,
            "data": ["198.18.1.1"],
        },
    }


# One at a time.


def test_two_never_make_a_lab_at_the_same_time(lab_dir: Path) -> None:
    def enter() -> None:
        with site.locked(lab_dir, "other", 0):
            pass

    with site.locked(lab_dir, NAME, 0):
        assert refusal(enter) == (
            f"{lab_dir} is locked for 0 s: another lab is being made or removed there "
            "while other waits"
        )
    enter()


def test_the_lock_is_given_back_also_after_a_failure(lab_dir: Path) -> None:
    with pytest.raises(ZeroDivisionError), site.locked(lab_dir, NAME, 0):
        raise ZeroDivisionError
    with site.locked(lab_dir / "new", NAME, 0):
        pass
    with site.locked(lab_dir, NAME, 0):
        pass
    assert [path.name for path in lab_dir.iterdir()] == ["new"]


# The module as Ansible calls it.


@pytest.fixture
def module(
    lab_dir: Path, image: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    def called(*hosts: dict[str, Any], **other: Any) -> dict[str, Any]:
        usual = {
            **parameters(*hosts),
            "lab_dir": str(lab_dir),
            "image": str(image),
            "accelerator": "tcg",
            "boot_timeout": 1,
            "stop_timeout": 1,
        }
        with patch_module_args({**usual, **other}), pytest.raises(SystemExit):
            lab_vm.main()
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return called


Module = Callable[..., dict[str, Any]]


def test_the_module_makes_a_lab_once_and_removes_it_once(module: Module) -> None:
    made = module(host("server1"), host("client1"))
    assert made["changed"]
    assert made["hosts"]["client1"]["status"] == "running"
    assert (made["accelerator"], made["why_not_kvm"]) == ("tcg", "")
    assert not module(host("server1"), host("client1"))["changed"]
    assert module(state="absent")["removed"] == ["client1", "server1"]
    assert not module(state="absent")["changed"]


def test_check_mode_says_it_and_does_nothing(
    module: Module, machine: Machine, lab_dir: Path
) -> None:
    assert module(host("server1"), _ansible_check_mode=True)["changed"]
    assert machine.done == []
    assert not (lab_dir / NAME).exists()
    module(host("server1"))
    machine.done.clear()
    assert module(state="absent", _ansible_check_mode=True)["removed"] == ["server1"]
    assert machine.done == []
    assert (lab_dir / NAME).exists()


def test_what_fails_is_said_in_one_line(module: Module, image: Path) -> None:
    (image / "disk.raw").unlink()
    failed = module(host("server1"))
    assert failed["failed"]
    assert failed["msg"] == (
        f"lab_vm: image {image}: no disk.raw: build it with lab_image_kernel=true"
    )


@pytest.mark.parametrize("name", ["..", ".", "", "../other"])
def test_a_lab_whose_name_is_none_is_not_removed(module: Module, lab_dir: Path, name: str) -> None:
    (lab_dir.parent / "other").mkdir()
    keep = [lab_dir / "id_ed25519", lab_dir.parent / "README.md", lab_dir.parent / "other" / "x"]
    for path in keep:
        path.write_text("kept")
    failed = module(state="absent", name=name)
    assert all(path.exists() for path in keep)
    assert "lab_name" in failed["msg"]


def test_a_directory_of_the_lab_that_is_no_labs_is_not_removed(module: Module, image: Path) -> None:
    module(state="absent", name="image")
    assert (image / "vmlinuz").exists()


def test_hosts_of_the_other_kind_in_a_lab_of_the_same_name_are_not_removed(
    module: Module, lab_dir: Path
) -> None:
    """As lab_nspawn keeps them: with both inventories, LAB=name means the same directory."""
    upper = lab_dir / NAME / "hosts" / "server1" / "upper"
    upper.mkdir(parents=True)
    (upper / "file").write_text("kept")
    (upper.parent / "host.json").write_text("{}")
    (lab_dir / NAME / "lab.json").write_text("{}")
    module(state="absent")
    assert (upper / "file").exists()


def test_a_full_disk_is_said_in_one_line(
    module: Module, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(site, "write", full)
    failed = module(host("server1"))
    assert failed["msg"].startswith("lab_vm: ")
    assert "No space left on device" in failed["msg"]
    assert machine.running == {}
