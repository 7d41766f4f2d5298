import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from vm_parts import (
    NAME,
    Machine,
    Make,
    fleet,
    host,
    layout,
    listening,
    making,
    parameters,
    qemu,
    refusal,
    vm_arguments,
    vm_layout,
)

PORT_IS_FREE = qemu.port_is_free


def test_files_come_as_a_tar_that_the_guest_unpacks() -> None:
    made = {"etc/hosts": "198.18.0.1 sérver1\n", "etc/hostname": "server1\n"}
    with tarfile.open(fileobj=io.BytesIO(making._tar(made))) as archive:
        entries = archive.getmembers()
        texts = {entry.name: archive.extractfile(entry) for entry in entries}
        assert {name: file.read().decode() for name, file in texts.items() if file} == made
    assert all(entry.isreg() and entry.mode == 0o644 for entry in entries)
    assert all((entry.uid, entry.gid) == (0, 0) for entry in entries)


# Refused before anything is touched.


@pytest.mark.parametrize(
    "missing",
    [["vmlinuz"], ["initrd.img"], ["disk.raw"], ["vmlinuz", "initrd.img", "disk.raw"]],
)
def test_an_image_that_is_not_whole_is_refused(
    vm_maker: Make, vm_machine: Machine, vm_image: Path, missing: list[str]
) -> None:
    for name in missing:
        (vm_image / name).unlink()
    assert refusal(vm_maker, None, "auto") == (
        f"image {vm_image}: no {', '.join(missing)}: build it with lab_image_kernel=true"
    )
    assert vm_machine.done == []


def test_a_port_in_use_is_refused(
    vm_maker: Make, vm_machine: Machine, lab_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever listens on the server's port on this machine is not what is asked.
    monkeypatch.setattr(qemu, "port_is_free", lambda port: port == 22201 or PORT_IS_FREE(port))
    with listening() as listener:
        port = listener.getsockname()[1]
        made = vm_maker(vm_layout.lay_out(parameters(host("server1"), host("client1", port=port))))
        assert refusal(made.check) == (
            f"host client1: port {port} of 127.0.0.1 is in use: free it, or choose "
            "another lab_ssh_port_base"
        )
    made.check()
    assert vm_machine.done == []
    assert not (lab_dir / f"{NAME}.vm").exists()


def test_the_ports_of_machines_that_run_are_in_use_by_themselves(
    vm_maker: Make, vm_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm_maker().make(10, 10)
    monkeypatch.setattr(qemu, "port_is_free", lambda _: False)
    bigger = vm_maker(fleet(boot_args=["thash_entries=4096"]))
    assert bigger.plan.stop == ["server1", "client1"]
    bigger.check()
    vm_maker().check()


def test_a_port_in_use_is_refused_also_for_a_machine_that_changes_to_it(
    vm_maker: Make, vm_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm_maker().make(10, 10)
    moved = vm_maker(vm_layout.lay_out(parameters(host("server1"), host("client1", port=22299))))
    monkeypatch.setattr(qemu, "port_is_free", lambda port: port != 22299)
    assert "port 22299 of 127.0.0.1 is in use" in refusal(moved.check)


def test_a_port_that_a_machine_gives_up_may_be_taken_by_another(
    vm_maker: Make, vm_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm_maker().make(10, 10)
    hosts = [host("server1", port=22200), host("client1", port=22201), host("client2", port=22202)]
    shifted = vm_maker(vm_layout.lay_out(parameters(*hosts)))
    assert shifted.plan.stop == ["server1", "client1"]
    # Both are those of machines that are stopped first.
    monkeypatch.setattr(qemu, "port_is_free", lambda port: port not in (22201, 22202))
    shifted.check()


def test_too_little_memory_is_refused(vm_maker: Make, vm_machine: Machine, lab_dir: Path) -> None:
    vm_machine.available = 3159
    made = vm_maker()
    assert refusal(made.check) == (
        "server1 1024 + client1 1024 MiB, 300 MiB for each QEMU and 512 MiB to spare are "
        "3160 MiB, and MemAvailable is 3159 MiB: lower connections or lab_vm_memory_mib, "
        "or free memory"
    )
    vm_machine.available = 3160
    made.check()
    assert vm_machine.done == []
    assert not (lab_dir / f"{NAME}.vm").exists()


def test_memory_of_machines_that_are_stopped_first_counts_as_free(
    vm_maker: Make, vm_machine: Machine
) -> None:
    vm_maker(fleet(3)).make(10, 10)
    vm_machine.available = 60
    vm_machine.resident = {vm_machine.running["server1"]: 1200, vm_machine.running["client1"]: 1000}
    vm_machine.resident[vm_machine.running["client2"]] = 900
    fewer = vm_maker(fleet(2))
    assert fewer.plan.remove == ["client2"]
    fewer.check()
    vm_machine.available = 59
    assert "MemAvailable is 3159 MiB" in refusal(fewer.check)


def test_machines_that_stay_need_no_more_memory(vm_maker: Make, vm_machine: Machine) -> None:
    vm_maker().make(10, 10)
    vm_machine.available = 0
    again = vm_maker()
    again.check()
    assert again.plan.empty


def test_memory_is_read_from_this_machine() -> None:
    text = Path("/proc/meminfo").read_text()
    total = int(text.split("MemTotal:")[1].split()[0]) >> 10
    assert 0 < making._available_mib() <= total
    assert 0 < making._resident_mib(os.getpid()) < total
    assert making._resident_mib(None) == 0


# Made.


def test_machines_are_made_from_nothing(
    vm_maker: Make, vm_machine: Machine, vm_image: Path, lab_dir: Path
) -> None:
    made = vm_maker()
    made.make(10, 10)
    assert vm_machine.did("start") == ["server1", "client1"]
    for vm in made.fleet.vms:
        directory = made.site.directory(vm.name)
        words = vm_arguments.qemu_arguments(made.fleet, vm, "tcg", str(vm_image), str(directory))
        assert json.loads((directory / "words").read_text()) == words
        # By this link lab_image knows that the image is in use.
        assert (directory / "lower").resolve() == vm_image / "rootfs"
        with tarfile.open(directory / "files.tar") as archive:
            assert set(archive.getnames()) == set(vm_arguments.guest_files(made.fleet, vm))
    assert made.site.state == lab_dir / f"{NAME}.vm"
    about = {"name": NAME, "image": str(vm_image)}
    assert json.loads((made.site.state / "lab.json").read_text()) == about
    disk = made.site.directory("server1") / "disk.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", f"{vm_image}/disk.raw", "-F", "raw"]
    assert vm_machine.did("run")[0] == [*create, str(disk)]


def test_a_machine_starts_when_the_one_that_it_connects_to_listens(
    vm_maker: Make, vm_machine: Machine
) -> None:
    vm_maker(fleet(3)).make(10, 10)
    steps = [(how, what) for how, what in vm_machine.done if how in ("start", "await")]
    assert steps[:3] == [
        ("start", "server1"),
        ("await", ("server1", ["client1.sock", "client2.sock"])),
        ("start", "client1"),
    ]


def test_made_twice_nothing_is_done(vm_maker: Make, vm_machine: Machine) -> None:
    vm_maker().make(10, 10)
    vm_machine.done.clear()
    again = vm_maker()
    assert again.plan.empty
    assert again.answers()
    assert vm_machine.done == []


def test_a_machine_that_starts_anew_keeps_its_disk_and_nothing_stale(
    vm_maker: Make, vm_machine: Machine
) -> None:
    made = vm_maker()
    made.make(10, 10)
    directory = made.site.directory("client1")
    for name in ("client2.sock", "console.log"):
        (directory / name).write_text("old")
    (directory / "disk.qcow2").write_text("written to")
    del vm_machine.running["client1"]
    vm_machine.done.clear()
    vm_maker().make(10, 10)
    assert vm_machine.did("start") == ["client1"]
    assert vm_machine.did("run") == []
    assert (directory / "disk.qcow2").read_text() == "written to"
    assert not list(directory.glob("*.sock"))
    assert not (directory / "console.log").exists()


def test_another_image_means_a_new_disk(
    vm_maker: Make, vm_machine: Machine, vm_image: Path, lab_dir: Path
) -> None:
    vm_maker().make(10, 10)
    newer = vm_image.rename(vm_image.with_name("fedcba9876543210"))
    vm_machine.done.clear()
    made = vm_maker(path=newer)
    made.make(10, 15)
    assert vm_machine.did("stop")[:2] == [([], 15), (["server1", "client1"], 15)]
    disks = [made.site.directory(name) / "disk.qcow2" for name in ("server1", "client1")]
    assert [(words[6], Path(words[-1])) for words in vm_machine.did("run")] == [
        (f"{newer}/disk.raw", disk) for disk in disks
    ]
    assert (disks[0].parent / "lower").resolve() == newer / "rootfs"
    assert vm_maker(path=newer).plan.empty


def test_a_machine_that_is_not_wanted_is_removed_before_others_start(
    vm_maker: Make, vm_machine: Machine
) -> None:
    vm_maker(fleet(3)).make(10, 10)
    vm_machine.done.clear()
    made = vm_maker(fleet(2))
    made.make(10, 20)
    assert vm_machine.done[0] == ("stop", (["client2"], 20))
    assert not made.site.directory("client2").exists()
    assert sorted(vm_machine.running) == ["client1", "server1"]


@pytest.mark.parametrize("error", [layout.LabError("does not start"), KeyboardInterrupt()])
def test_what_was_started_is_ended_when_another_does_not_start(
    vm_maker: Make, vm_machine: Machine, error: BaseException
) -> None:
    vm_maker(fleet(2)).make(10, 10)
    vm_machine.running.pop("server1")
    vm_machine.fails["client1"] = error
    vm_machine.done.clear()
    with pytest.raises(type(error)) as raised:
        vm_maker(fleet(2)).make(10, 10)
    assert raised.value is error
    assert vm_machine.done[-1] == ("stop", (["server1", "client1"], 0))
    assert vm_machine.running == {}


def test_what_ran_before_runs_on_when_another_does_not_start(
    vm_maker: Make, vm_machine: Machine
) -> None:
    vm_maker(fleet(3)).make(10, 10)
    vm_machine.running.pop("client2")
    vm_machine.fails["client2"] = layout.LabError("does not start")
    assert refusal(vm_maker(fleet(3)).make, 10, 10) == "does not start"
    assert vm_machine.done[-1] == ("stop", (["client2"], 0))
    assert sorted(vm_machine.running) == ["client1", "server1"]


def boots_no_further(made: Any, vm_machine: Machine, console: bytes, **gone: bool) -> str:
    start = qemu.start

    def started(directory: Path, words: list[str]) -> None:
        start(directory, words)
        if directory.name == "client1":
            (directory / "console.log").write_bytes(console)
            if gone:
                del vm_machine.running["client1"]

    vm_machine.silent = {22202}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qemu, "start", started)
        return refusal(made.make, 0, 0)


CONSOLE = b"[    1.0] \x1b[31mKernel panic\x1b[0m - not syncing\r\n\r\n[    1.1] ---[ end\r\n"


@pytest.mark.parametrize(
    ("console", "said"),
    [
        (CONSOLE, "[    1.0] Kernel panic - not syncing / [    1.1] ---[ end"),
        (b"", "empty"),
    ],
)
def test_a_guest_that_does_not_boot_is_named_with_its_last_words(
    vm_maker: Make, vm_machine: Machine, console: bytes, said: str
) -> None:
    made = vm_maker()
    path = made.site.directory("client1") / "console.log"
    assert boots_no_further(made, vm_machine, console) == (
        "host client1: no SSH greeting on 127.0.0.1 port 22202 within 0 s; "
        f"console ({path}): {said}"
    )
    assert vm_machine.running == {}
    assert path.read_bytes() == console


def test_a_guest_whose_qemu_ended_is_named_at_once(vm_maker: Make, vm_machine: Machine) -> None:
    made = vm_maker()
    path = made.site.directory("client1") / "console.log"
    assert boots_no_further(made, vm_machine, b"I/O error\n", gone=True) == (
        f"host client1: its QEMU ended; console ({path}): I/O error"
    )


def test_a_console_may_hold_any_bytes(vm_maker: Make, vm_machine: Machine) -> None:
    said = boots_no_further(vm_maker(), vm_machine, b"\xff\xfe Kernel panic\n")
    assert said.endswith("Kernel panic")


def test_a_machine_that_runs_but_does_not_answer_is_waited_for(
    vm_maker: Make, vm_machine: Machine
) -> None:
    vm_maker().make(10, 10)
    vm_machine.silent = {22202}
    vm_machine.done.clear()
    made = vm_maker()
    assert made.plan.empty
    assert not made.answers()
    assert "host client1: no SSH greeting" in refusal(made.make, 0, 10)
    # It was not started here, so it is not ended here.
    assert sorted(vm_machine.running) == ["client1", "server1"]


def test_the_report_says_what_was_done_and_why(vm_maker: Make, vm_machine: Machine) -> None:
    vm_maker().make(10, 10)
    del vm_machine.running["client1"]
    made = vm_maker()
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
