"""A lab of virtual machines on this machine: its state, its removal, its lock."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ansible.module_utils import connlab_vm_qemu as qemu
from ansible.module_utils.connlab_base import private, read
from ansible.module_utils.connlab_layout import LabError, check_name
from ansible.module_utils.connlab_vm_plan import Found


class Site:
    """The state directory of a lab."""

    def __init__(self, directory: Path, name: str) -> None:
        """:raises LabError: if the name is not valid."""
        check_name(name)
        # Names have no dots, so a lab of nspawn hosts of the same name has another directory.
        self.state = directory / f"{name}.vm"

    def directory(self, host: str) -> Path:
        """Return the directory of a machine's disk, sockets, pid file and console log."""
        return self.state / "hosts" / host

    def look(self) -> dict[str, Found]:
        """Return the current state of each machine."""
        found = {}
        for directory in sorted(self.state.glob("hosts/*")):
            now = Found(alive=qemu.pid(directory) is not None, traces=True)
            with contextlib.suppress(ValueError):
                kept = json.loads(read(directory / "vm.json") or "{}")
                now.image, now.configuration = kept.get("image", ""), kept.get("configuration", "")
                now.port = kept.get("port", 0)
            found[directory.name] = now
        return found

    def remove(self, hosts: Iterable[str], limit: float) -> None:
        """Stop machines and remove their disks."""
        directories = [self.directory(host) for host in hosts]
        qemu.stop(directories, limit)
        for directory in directories:
            shutil.rmtree(directory, ignore_errors=True)

    def unmake(self, limit: float) -> list[str]:
        """Remove the whole lab, and return the removed parts."""
        gone = sorted(self.look())
        self.remove(gone, limit)
        if self.state.exists():
            shutil.rmtree(self.state)
            gone = gone or ["state directory"]
        return gone


@contextlib.contextmanager
def locked(directory: Path, name: str, limit: float) -> Iterator[None]:
    """Hold the lock of the checkout's labs.

    :raises LabError: if another create or destroy holds it for longer than limit seconds.
    """
    private(directory)
    deadline = time.monotonic() + limit
    # On the directory itself, so that no file is left; the labs of one checkout take turns.
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LabError(
                        f"{directory} is locked for {limit:.0f} s: another lab is being created or "
                        f"removed there while {name} waits"
                    ) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(handle)
