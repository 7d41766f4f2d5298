"""The Python inside of the role lab_vm, and what its tests share: parameters, fake machines."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tune_loader import load

layout = load("lab_common", "module_utils", "connlab_layout")
base = load("lab_common", "module_utils", "connlab_base")
files = load("lab_common", "module_utils", "connlab_files")
lab_plan = load("lab_common", "module_utils", "connlab_plan")
vm_layout = load("lab_vm", "module_utils", "connlab_vm_layout")
vm_arguments = load("lab_vm", "module_utils", "connlab_vm_arguments")
plan = load("lab_vm", "module_utils", "connlab_vm_plan")
qemu = load("lab_vm", "module_utils", "connlab_vm_qemu")
kvm = load("lab_vm", "module_utils", "connlab_vm_kvm")
site = load("lab_vm", "module_utils", "connlab_vm_site")
making = load("lab_vm", "module_utils", "connlab_vm_maker")

NAME = "connlab-vm"
IMAGE = "/lab/image/1"
NOT_INSTALLED = "qemu-system-x86_64: not installed: apt install qemu-system-x86 qemu-utils"

Make = Callable[..., Any]
Module = Callable[..., dict[str, Any]]
"""Calls the module lab_vm, and returns what it says."""

OnPath = Callable[[str], Path]
"""Puts a script into PATH as QEMU."""


def host(name: str, **other: Any) -> dict[str, Any]:
    """Parameters of one host, as Ansible hands them over."""
    number = 0 if name == "server1" else int(name.removeprefix("client"))
    usual = {"port": 22201 + number, "data": [f"198.18.{number}.1"], "memory_mib": 1024, "cpus": 1}
    return {"name": name, **usual, **other}


def parameters(*hosts: dict[str, Any], **other: Any) -> dict[str, Any]:
    """Parameters of the module."""
    usual = {
        "name": NAME,
        "data_prefixes": ["198.18.0.0/15", "fd63:6f6e:6e6c::/48"],
        "data_interface": "data0",
        "management_interface": "mgmt0",
        "boot_args": ["thash_entries=1024"],
    }
    return {**usual, "hosts": list(hosts), **other}


def fleet(machines: int = 2, **other: Any) -> Any:
    """A server and clients."""
    names = ["server1", *(f"client{number}" for number in range(1, machines))]
    return vm_layout.lay_out(parameters(*map(host, names), **other))


def arguments(
    directory: Path | str = "/lab/hosts/server1", kind: str = "tcg", **other: Any
) -> list[str]:
    """The command line of the first machine of a fleet."""
    lab = fleet(**other)
    words: list[str] = vm_arguments.qemu_arguments(lab, lab.vms[0], kind, IMAGE, str(directory))
    return words


def refusal(act: Callable[..., Any], *those: Any) -> str:
    """What a call that is refused says."""
    with pytest.raises(layout.LabError) as refused:
        act(*those)
    return str(refused.value)


class FakeQemu:
    """A process with a machine's command line, and its monitor.

    :param heeds: the commands that end the process.
    :param greeting: what the monitor says first; without one it accepts and is silent.
    :param refuses: the command that it answers with an error.
    """

    GREETING = b'{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}\r\n'

    def __init__(
        self,
        directory: Path,
        heeds: Sequence[str] = (),
        greeting: bytes = GREETING,
        refuses: str = "",
    ) -> None:
        self.directory, self.heeds, self.refuses = directory, heeds, refuses
        self.greeting = greeting
        self.heard: list[str] = []
        self.process = idle_process("qemu", *arguments(directory))
        (directory / "qemu.pid").write_text(f"{self.process.pid}\n")
        self.listener = socket.socket(socket.AF_UNIX)
        handle = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        self.listener.bind(f"/proc/self/fd/{handle}/qmp.sock")
        os.close(handle)
        self.listener.listen()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        # A listener that is shut down accepts no more; a peer that is gone is nothing of ours.
        with contextlib.suppress(OSError):
            while True:
                link, _ = self.listener.accept()
                link.settimeout(10)
                with link, link.makefile("rb") as lines, contextlib.suppress(OSError):
                    link.sendall(self.greeting)
                    for line in lines:
                        self._answer(link, json.loads(line)["execute"])

    def _answer(self, link: socket.socket, command: str) -> None:
        self.heard.append(command)
        if command == self.refuses:
            link.sendall(b'{"error": {"class": "GenericError", "desc": "not now"}}\r\n')
            return
        link.sendall(b'{"event": "POWERDOWN", "timestamp": {}}\r\n{"return": {}}\r\n')
        if command in self.heeds:
            self.process.kill()

    def close(self) -> None:
        """End the process and the monitor."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()
        end(self.process)


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

    def await_listening(self, directory: Path, names: list[str]) -> None:
        self.done.append(("await", (directory.name, names)))

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


def idle_process(*words: str | bytes) -> subprocess.Popen[bytes]:
    """A process that does nothing, with these words in its command line."""
    # The shell itself reads: it has no child that could outlive it.
    command = ["sh", "-c", "echo; read line", *words]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    # Popen returns a moment before /proc has the new command line.
    assert process.stdout
    process.stdout.readline()
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process of :func:`idle_process`."""
    process.kill()
    process.communicate()


@contextlib.contextmanager
def listening(address: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A socket that listens on a free port; connections wait in its queue."""
    with socket.socket() as listener:
        listener.bind((address, 0))
        listener.listen()
        yield listener
