"""QEMU processes: started, asked, stopped, and told apart from others."""

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
"""Flag of a socket that listens, in /proc/net/unix (include/uapi/linux/net.h __SO_ACCEPTCON)."""

NOT_INSTALLED = f"{QEMU}: not installed: apt install qemu-system-x86 qemu-utils"


def pid(directory: Path) -> int | None:
    """The QEMU process of a machine's directory, if it runs.

    Its command line names its disk: a pid that belongs to somebody else by now is told apart.
    """
    text = read(directory / "qemu.pid").strip()
    if not text.isdigit():
        return None
    words = read(Path(f"/proc/{text}/cmdline")).split("\0")
    mark = disk(str(directory)) + ","
    return int(text) if any(word.startswith(mark) for word in words) else None


def start(directory: Path, arguments: Sequence[str]) -> None:
    """Start a machine; it runs on by itself. :raises LabError: with QEMU's own complaint."""
    try:
        done = subprocess.run(
            [QEMU, *arguments],
            cwd=directory,
            # Nothing of the caller's environment: it may hold a proxy's password.
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
    """Wait until a machine that was started listens on sockets of its directory.

    QEMU listens in a thread of its own, which its start does not wait for (net/stream.c
    net_stream_server_init), and one that comes too early does not try again: its guest would have
    a network card that reaches nobody.

    :raises LabError: if it does not within so many seconds.
    """
    deadline = time.monotonic() + limit
    while missing := [name for name in names if name not in _listening(pid(directory))]:
        if time.monotonic() > deadline:
            raise LabError(
                f"host {directory.name}: {QEMU} does not listen on {missing[0]} after {limit:g} s"
            )
        time.sleep(0.01)


def _listening(process: int | None) -> set[str]:
    """Paths of the unix sockets that a process listens on, as it named them."""
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
        # A unix socket's path is short (unix(7)): it is reached through its open directory.
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
    """Power machines off in parallel; end after limit seconds those that do not.

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
    """Whether an SSH server greets on a port of 127.0.0.1.

    QEMU accepts for the guest at once: only a greeting tells that somebody is behind it.
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
    """Whether QEMU can listen on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def orphans_ended(directories: Sequence[Path]) -> Iterator[None]:
    """End what was started if the caller fails: a create leaves all machines or none of these."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(LabError):
            stop(directories, 0)
        raise
