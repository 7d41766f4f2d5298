"""Evidence of one host: the texts that its tools print.

Nothing here walks ``/proc/<pid>/fd``: that would leave an inode in the kernel's cache for every
socket, and so change what is measured.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple

from bench import wire

PIECE = 1 << 18
"""Bytes to read at a time."""

TIMEOUT = 60
SOCKETS_TIMEOUT = 240
"""Seconds for a list of all sockets: a million take a second or two, minutes under emulation."""

LIMITS = (
    "/proc/self/limits",
    "/proc/sys/fs/file-nr",
    "/proc/sys/fs/file-max",
    "/proc/sys/fs/nr_open",
    "/proc/sys/fs/epoll/max_user_watches",
    "/proc/sys/kernel/pid_max",
    "/proc/sys/kernel/threads-max",
    "/proc/loadavg",
    "/proc/sys/net/netfilter/nf_conntrack_count",
    "/proc/sys/net/netfilter/nf_conntrack_max",
)
SLABS = Path("/sys/kernel/slab")
CGROUP_FILES = (
    "pids.max",
    "pids.current",
    "pids.events",
    "memory.max",
    "memory.current",
    "memory.events",
)
LOG_BYTES = 64 << 20
"""The most bytes of all kernel messages together; the kernel's own buffer has 32 MiB at most
(init/Kconfig LOG_BUF_SHIFT)."""
LOG_LINES = 400
"""The newest kernel messages that a phase keeps: a limit is reported once or a few times a
second."""

_children: Set[subprocess.Popen[bytes]] = set()
_lock = threading.Lock()


class Unreadable(Exception):
    """A source cannot be read; the text is the reason."""


def end_children() -> None:
    """Kill the tools that are still running, since the agent is ending."""
    with _lock:
        for child in _children:
            _kill(child)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill a tool. If it runs as root by sudo(8), it cannot be killed, and timeout(1) ends it."""
    with contextlib.suppress(OSError):
        child.kill()


def tool(name: str) -> str:
    """Return the full path of a tool; ``/usr/sbin`` is not on every user's path."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin")
    if not found:
        raise Unreadable(f"{name} is not installed")
    return found


@functools.lru_cache(None)
def _mortal() -> Tuple[str, ...]:
    """Return the words that start a tool so that it dies with the agent.

    They set PR_SET_PDEATHSIG (prctl(2)).

    A ``preexec_fn`` is no choice, because it may hang where there are threads. If no setpriv(1) can
    do it (util-linux 2.33), a tool that outlives the agent is found by its mark
    (:mod:`bench.agent.remains`).
    """
    words = ("setpriv", "--pdeathsig", "KILL", "--")
    quiet = subprocess.DEVNULL
    try:
        tried = subprocess.call(
            [*words, "true"], stdin=quiet, stdout=quiet, stderr=quiet, timeout=TIMEOUT
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return () if tried else words


def as_root(*argv: str) -> List[str]:
    """Return the words that run a tool as root, with a time limit of its own.

    sudo(8) undoes the setting that makes a tool die with the agent, and only root may kill such a
    tool. ``docs/sudoers`` has the same words.
    """
    if os.geteuid() == 0:
        return list(argv)
    return [tool("sudo"), "-n", tool("timeout"), "-s", "KILL", str(TIMEOUT), *argv]


def _start(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [*_mortal(), *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with _lock:
        _children.add(child)
    return child


def output(argv: Sequence[str], most: int = wire.TEXT_BYTES) -> str:
    """Return what a tool prints, up to ``most`` bytes.

    :raises Unreadable: with the tool's own words if it fails, or if it prints more.
    """
    child = _start(argv)
    try:
        out, err = child.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        _kill(child)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=1)
        raise Unreadable(f"{argv[0]}: no answer within {TIMEOUT} s") from error
    finally:
        with _lock:
            _children.discard(child)
    if child.returncode:
        reason = err.decode(errors="replace").strip().splitlines()
        raise Unreadable(reason[-1] if reason else f"{argv[0]}: exit status {child.returncode}")
    if len(out) > most:
        raise Unreadable(f"{argv[0]}: more than {most} bytes")
    return out.decode(errors="replace")


def text(path: str) -> str:
    """Return a file's text. :raises Unreadable: with the system's reason, or if it is too long."""
    found = bytearray()
    try:
        with open(path, "rb", buffering=0) as file:
            # In pieces: a read of 4 MiB at once fails with ENOMEM in /proc/sys
            # (fs/proc/proc_sysctl.c proc_sys_call_handler()).
            while len(found) <= wire.TEXT_BYTES and (piece := file.read(PIECE)):
                found += piece
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
    if len(found) > wire.TEXT_BYTES:
        raise Unreadable(f"{path}: more than {wire.TEXT_BYTES} bytes")
    return found.decode("utf-8", "replace")


def _bounded(name: str, text_of_it: str) -> str:
    """Return a source's text. :raises Unreadable: if it is longer than the controller accepts."""
    if len(text_of_it.encode(errors="replace")) > wire.TEXT_BYTES:
        raise Unreadable(f"{name}: more than {wire.TEXT_BYTES} bytes")
    return text_of_it


def _slabinfo() -> str:
    try:
        return text("/proc/slabinfo")
    except Unreadable:
        return output(as_root(tool("cat"), "/proc/slabinfo"))


def _cgroup() -> str:
    """Return the agent's cgroups up to the root that it sees (cgroup-v2.rst), a figure a line."""
    for row in text("/proc/self/cgroup").splitlines():
        if row.startswith("0::"):
            place = Path(row[3:])
            break
    else:
        raise Unreadable("/proc/self/cgroup: no cgroup of version 2")
    lines = []
    for group in (place, *place.parents):
        for name in CGROUP_FILES:
            try:
                rows = text(f"/sys/fs/cgroup{group}/{name}").splitlines()
            except Unreadable:
                continue  # the root has none; a disabled controller has none anywhere
            lines += [f"{group} {name} {row}\n" for row in rows]
    return "".join(lines)


def _kernel_log() -> str:
    """Return the last kernel messages, as root: kernel.dmesg_restrict may hide them from others."""
    rows = output(as_root(tool("dmesg")), LOG_BYTES).splitlines(True)
    return "".join(rows[-LOG_LINES:])


def _limits() -> str:
    parts = []
    for path in LIMITS:
        try:
            parts.append(f"==> {path} <==\n{text(path)}")
        except Unreadable as reason:
            parts.append(f"==> {path} <==\n# {reason}\n")
    return "".join(parts)


def _slab_aliases() -> str:
    """Return the caches that the kernel merged (mm/slab_common.c): name and shared cache."""
    try:
        links = sorted(path for path in SLABS.iterdir() if path.is_symlink())
        return "".join(f"{path.name} {os.readlink(path)}\n" for path in links)
    except OSError as error:
        raise Unreadable(f"{SLABS}: {error.strerror}") from error


_READERS: Dict[str, Callable[[], str]] = {
    "ss_s": lambda: output([tool("ss"), "-s"]),
    "sockstat": lambda: text("/proc/net/sockstat"),
    "sockstat6": lambda: text("/proc/net/sockstat6"),
    "meminfo": lambda: text("/proc/meminfo"),
    "slabinfo": _slabinfo,
    "slab_aliases": _slab_aliases,
    "nstat": lambda: output([tool("nstat"), "-asz"]),
    "limits": _limits,
    "cgroup": _cgroup,
    "conntrack_stat": lambda: text("/proc/net/stat/nf_conntrack"),
    "kernel_log": _kernel_log,
}
SOURCES = {name: _READERS[name] for name in wire.SOURCES}
"""Source name to the function that reads its text. The controller accepts no other names."""

EXTRAS = frozenset({"cgroup", "conntrack_stat", "kernel_log"})
"""Sources that not every host has: conntrack may not be loaded, and a container may not read the
kernel's messages. If such a source is missing, that is no gap in the evidence."""


def sockets(endpoints: Iterable[wire.Endpoint], side: str, state: str) -> int:
    """Return how many lines ``ss`` prints for sockets in a state (ss(8)).

    Lines are counted as they arrive: a million lines are 100 MB that need not be kept.

    :param side: ``src`` or ``dst``
    """
    terms = [f"{side} = {'[' + a + ']' if ':' in a else a}:{port}" for a, port in endpoints]
    argv = [tool("ss"), "-Htn", "state", state, "( " + " or ".join(terms) + " )"]
    child = _start(argv)
    assert child.stdout and child.stderr
    alarm = threading.Timer(SOCKETS_TIMEOUT, _kill, (child,))
    alarm.daemon = True
    alarm.start()
    try:
        lines = 0
        while True:
            piece = child.stdout.read(PIECE)
            if not piece:
                break
            lines += piece.count(b"\n")
        complaint = child.stderr.read().decode(errors="replace").strip()
        if child.wait():
            raise Unreadable(complaint or f"ss: exit status {child.returncode}")
    finally:
        alarm.cancel()
        child.stdout.close()
        child.stderr.close()
        with _lock:
            _children.discard(child)
    return lines


def pss_kib(pids: Iterable[int]) -> int:
    """Return the proportional set size of several processes, KiB (proc(5), smaps_rollup)."""
    return sum(_rollup(pid).get("Pss", 0) for pid in pids)


def own_kib(pids: Iterable[int]) -> int:
    """Return the same without pages of files, KiB.

    Pages of files are shared with every other process that maps them, so a process's part changes
    when other processes come and go. Before Linux 5.3 the kernel does not list them separately;
    then they are included.
    """
    total = 0
    for pid in pids:
        found = _rollup(pid)
        parts = found.get("Pss_Anon"), found.get("Pss_Shmem")
        total += found.get("Pss", 0) if None in parts else sum(part or 0 for part in parts)
    return total


def _rollup(pid: int) -> Dict[str, int]:
    """Return the sizes of a process by name, KiB; empty if it has ended."""
    try:
        rows = text(f"/proc/{pid}/smaps_rollup").splitlines()[1:]
    except Unreadable:
        return {}
    return {name: int(rest.split()[0]) for name, _, rest in (row.partition(":") for row in rows)}


def collect(
    phase: str,
    count: Optional[List[wire.Endpoint]],
    side: str,
    state: str,
    held: Callable[[], List[int]],
    pids: Sequence[int],
) -> wire.Collected:
    """Collect one phase's evidence.

    :param held: returns the connections of each worker
    :param pids: the agent and its workers
    """
    pss = pss_kib(pids)  # before the tools below cost memory of their own
    texts: Dict[str, str] = {}
    missing: Dict[str, str] = {}
    for name, read in SOURCES.items():
        try:
            texts[name] = _bounded(name, read())
        except (Unreadable, OSError) as reason:
            if name not in EXTRAS:
                missing[name] = str(reason)
    lines: Optional[int] = None
    if count:
        try:
            lines = sockets(count, side, state)
        except (Unreadable, OSError) as reason:
            missing["ss"] = str(reason)
    each = held()
    return {
        "event": "collected",
        "phase": phase,
        "texts": texts,
        "missing": missing,
        "held": sum(each),
        "held_each": each,
        "established": lines,
        "workers": len(pids) - 1,
        "pss_kib": pss,
    }
