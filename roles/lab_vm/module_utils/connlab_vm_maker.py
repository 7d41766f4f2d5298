"""Bring a fleet of virtual machines to its wanted state."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils import connlab_vm_qemu as qemu
from ansible.module_utils.connlab_base import private, read, run, write
from ansible.module_utils.connlab_files import last_words
from ansible.module_utils.connlab_layout import LabError
from ansible.module_utils.connlab_plan import Plan
from ansible.module_utils.connlab_vm_arguments import (
    configuration,
    guest_files,
    qemu_arguments,
    served,
)
from ansible.module_utils.connlab_vm_kvm import choose
from ansible.module_utils.connlab_vm_layout import Fleet, Vm
from ansible.module_utils.connlab_vm_plan import check_memory, decide
from ansible.module_utils.connlab_vm_site import Site

IMAGE_FILES = ("vmlinuz", "initrd.img", "disk.raw")
"""Files that lab_image packs for QEMU in addition to the tree."""


class Maker:
    """Brings a fleet to its wanted state, and reports what it did."""

    def __init__(self, site: Site, fleet: Fleet, image: Path, wanted: str, lab_dir: Path) -> None:
        missing = [name for name in IMAGE_FILES if not (image / name).is_file()]
        if missing:
            raise LabError(
                f"image {image}: no {', '.join(missing)}: build it with lab_image_kernel=true"
            )
        self.site, self.fleet, self.image = site, fleet, image
        self.kind, self.why = choose(wanted, image, lab_dir)
        self.found = site.look()
        self.plan: Plan = decide(fleet, self.kind, str(image), self.found)

    def check(self) -> None:
        """Check ports and memory before anything is touched. :raises LabError: with the reason."""
        starting = [vm for vm in self.fleet.vms if vm.name in self.plan.start]
        ending = [self.found[name] for name in [*self.plan.stop, *self.plan.remove]]
        given_up = {now.port for now in ending if now.alive}
        for vm in starting:
            if vm.port not in given_up and not qemu.port_is_free(vm.port):
                raise LabError(
                    f"host {vm.name}: port {vm.port} of 127.0.0.1 is in use: free it, or choose "
                    "another lab_ssh_port_base"
                )
        freed = [self.site.directory(name) for name in [*self.plan.stop, *self.plan.remove]]
        available = _available_mib() + sum(_resident_mib(qemu.pid(one)) for one in freed)
        check_memory(starting, available)

    def make(self, boot_limit: float, stop_limit: float) -> None:
        """Carry out the plan, and wait until every machine answers.

        :raises LabError: if one does not; the message has the end of its console.
        """
        plan, site = self.plan, self.site
        site.remove(plan.remove, stop_limit)
        qemu.stop([site.directory(name) for name in plan.stop], stop_limit)
        for name in plan.wipe:
            shutil.rmtree(site.directory(name))
        starting = [vm for vm in self.fleet.vms if vm.name in plan.start]
        # Access to a monitor's socket gives control of the machine, and disks have the hosts' key.
        private(site.state / "hosts")
        # A run finds the packages of its hosts through the image.
        about = {"name": self.fleet.name, "image": str(self.image)}
        write(self.site.state / "lab.json", json.dumps(about) + "\n")
        with qemu.orphans_ended([site.directory(vm.name) for vm in starting]):
            for vm in starting:
                self._start(vm)
            self._wait(self.fleet.vms, boot_limit)

    def answers(self) -> bool:
        """Return whether every machine answers now."""
        return all(qemu.answers(vm.port, 5) for vm in self.fleet.vms)

    def _start(self, vm: Vm) -> None:
        directory = self.site.directory(vm.name)
        directory.mkdir(parents=True, exist_ok=True)
        lower = directory / "lower"
        lower.unlink(missing_ok=True)
        lower.symlink_to(self.image / "rootfs")  # shows lab_image that the image is in use
        disk = directory / "disk.qcow2"
        if not disk.exists():
            base = str(self.image / "disk.raw")
            run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", disk)
        (directory / "files.tar").write_bytes(_tar(guest_files(self.fleet, vm)))
        for path in directory.glob("*.sock"):
            path.unlink()
        (directory / "console.log").unlink(missing_ok=True)
        about = {
            "image": str(self.image),
            "port": vm.port,
            "configuration": configuration(self.fleet, vm, self.kind, str(self.image)),
        }
        write(directory / "vm.json", json.dumps(about) + "\n")
        words = qemu_arguments(self.fleet, vm, self.kind, str(self.image), str(directory))
        qemu.start(directory, words)
        qemu.await_listening(directory, served(self.fleet, vm))

    def _wait(self, vms: Sequence[Vm], limit: float) -> None:
        silent = list(vms)
        deadline = time.monotonic() + limit
        while silent:
            silent = [vm for vm in silent if not qemu.answers(vm.port, 2)]
            for vm in silent:
                if qemu.pid(self.site.directory(vm.name)) is None:
                    raise LabError(f"host {vm.name}: its QEMU ended; {self._console(vm.name)}")
            if silent and time.monotonic() > deadline:
                raise LabError(
                    f"host {silent[0].name}: no SSH greeting on 127.0.0.1 port {silent[0].port} "
                    f"within {limit:.0f} s; {self._console(silent[0].name)}"
                )
            time.sleep(0.2 if silent else 0)

    def _console(self, host: str) -> str:
        path = self.site.directory(host) / "console.log"
        return f"console ({path}): {last_words(read(path)) or 'empty'}"

    def report(self) -> dict[str, Any]:
        """Return for each machine its status, the action and its reason, and its size."""
        return {
            vm.name: {
                "status": "running" if qemu.pid(self.site.directory(vm.name)) else "absent",
                "action": "started" if vm.name in self.plan.start else "none",
                "reason": self.plan.reasons.get(vm.name, ""),
                "port": vm.port,
                "memory_mib": vm.memory_mib,
                "cpus": vm.cpus,
                "data": [address.split("/")[0] for address in vm.data],
            }
            for vm in self.fleet.vms
        }


def _tar(files: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, text in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(text.encode()), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def _available_mib() -> int:
    return int(read(Path("/proc/meminfo")).split("MemAvailable:")[1].split()[0]) >> 10


def _resident_mib(pid: int | None) -> int:
    text = read(Path(f"/proc/{pid}/status")) if pid else ""
    return int(text.split("VmRSS:")[1].split()[0]) >> 10 if "VmRSS:" in text else 0
