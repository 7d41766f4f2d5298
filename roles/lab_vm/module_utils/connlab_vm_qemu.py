"""QEMU processes: start, control, stop and identify them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ansible.module_utils.connlab_base import read
from ansible.module_utils.connlab_layout import LabError
from ansible.module_utils.connlab_vm_arguments import disk

QEMU = "qemu-system-x86_64"

ACCEPTS = 1 << 16
"""Flag of a listening socket in /proc/net/unix (include/uapi/linux/net.h __SO_ACCEPTCON)."""

NOT_INSTALLED = f"{QEMU}: not installed: apt install qemu-system-x86 qemu-utils"


def pid(directory: Path) -> int | None:
    """Return the pid of the QEMU process of a machine's directory, or None if it does not run.

    Its command line names its disk, so a pid that another process has by now is recognized.
    """
    text = read(directory / "qemu.pid").strip()
    if not text.isdigit():
        return None
    words = read(Path(f"/proc/{text}/cmdline")).split("\0")
    mark = disk(str(directory)) + ","
    return int(text) if any(word.startswith(mark) for word in words) else None


def start(directory: Path, arguments: Sequence[str]) -> None:
    """Start a machine in the background. :raises LabError: with QEMU's error message."""
    try:
        done = subprocess.run(
            [QEMU, *arguments],
            cwd=directory,
            # Without the caller's environment, which may contain a proxy's password.
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        raise LabError(NOT_INSTALLED) from None
    except subprocess.TimeoutExpired:
        raise LabError(f"host {directory.name}: {QEMU} did not start within 60 s") from None
    if done.returncode:
        said = " / ".join(done.stderr.split("\n")).strip(" /")
        raise LabError(f"host {directory.name}: {QEMU}: {said or done.returncode}")


def await_listening(directory: Path, names: Sequence[str], limit: float = 10.0) -> None:
    """Wait until a started machine listens on sockets of its directory.

    QEMU listens in a separate thread, which its start does not wait for (net/stream.c
    net_stream_server_init). A QEMU that connects too early does not try again, and its guest's
    network card would reach no other host.

    :raises LabError: if it does not listen within `limit` seconds.
    """
    deadline = time.monotonic() + limit
    while missing := [name for name in names if name not in _listening(pid(directory))]:
        if time.monotonic() > deadline:
            raise LabError(
                f"host {directory.name}: {QEMU} does not listen on {missing[0]} after {limit:g} s"
            )
        time.sleep(0.01)


def _listening(process: int | None) -> set[str]:
    """Return the paths of the unix sockets that a process listens on, as it named them."""
    own = set()
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(f"/proc/{process}/fd"):
            with contextlib.suppress(FileNotFoundError):
                own.add(os.readlink(entry))
    rows = [row.split(maxsplit=7) for row in read(Path("/proc/net/unix")).splitlines()[1:]]
    return {
        row[7]
        for row in rows
        if len(row) == 8 and int(row[3], 16) & ACCEPTS and f"socket:[{row[6]}]" in own
    }


def ask(directory: Path, command: str, limit: float = 5.0) -> None:
    """Send one QMP command (qemu-qmp-ref(7)) to a machine's monitor.

    :raises OSError: if the monitor does not answer in time.
    """
    with contextlib.ExitStack() as stack:
        # unix(7) limits the length of a socket's path, so it is opened through its directory.
        handle = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        stack.callback(os.close, handle)
        link = stack.enter_context(socket.socket(socket.AF_UNIX))
        link.settimeout(limit)
        link.connect(f"/proc/self/fd/{handle}/qmp.sock")
        lines = stack.enter_context(link.makefile("r"))
        json.loads(lines.readline())
        for words in ("qmp_capabilities", command):
            link.sendall(json.dumps({"execute": words}).encode() + b"\n")
            while "return" not in (answer := json.loads(lines.readline() or '{"error": "end"}')):
                if "error" in answer:
                    raise OSError(f"{command}: {answer['error']}")


def stop(directories: Sequence[Path], limit: float) -> None:
    """Power machines off in parallel, and end those that still run after limit seconds.

    :raises LabError: if a process does not die.
    """
    running = {directory: found for directory in directories if (found := pid(directory))}
    for directory in running:
        with contextlib.suppress(OSError, ValueError):
            ask(directory, "system_powerdown")
    _wait_gone(list(running), limit)
    for directory in running:
        if pid(directory):
            with contextlib.suppress(OSError, ValueError):
                ask(directory, "quit")
    _wait_gone(list(running), 5)
    for directory in running:
        if found := pid(directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(found, signal.SIGKILL)
    if left := _wait_gone(list(running), 10):
        raise LabError(f"host {left[0].name}: its QEMU, pid {pid(left[0])}, does not die")
    for directory in directories:
        for name in ("qemu.pid", "qmp.sock"):
            (directory / name).unlink(missing_ok=True)


def _wait_gone(directories: list[Path], limit: float) -> list[Path]:
    deadline = time.monotonic() + limit
    while (left := [one for one in directories if pid(one)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def answers(port: int, limit: float) -> bool:
    """Return whether an SSH server greets on a port of 127.0.0.1.

    QEMU accepts connections before the guest is up, so only a greeting shows that it is.
    """
    try:
        link = socket.create_connection(("127.0.0.1", port), limit)
    except OSError:
        return False
    with link, contextlib.suppress(OSError):
        link.settimeout(limit)
        return link.recv(4) == b"SSH-"
    return False


def port_is_free(port: int) -> bool:
    """Return whether QEMU can listen on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def orphans_ended(directories: Sequence[Path]) -> Iterator[None]:
    """End the started machines if the caller fails, so that a create starts all of them or none."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(LabError):
            stop(directories, 0)
        raise
