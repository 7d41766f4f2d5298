"""Evidence of one host: the texts that its tools print, and its limits as facts.

Nothing here walks ``/proc/<pid>/fd``: that would leave an inode in the kernel's cache for every
socket and so change what is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set

from bench import wire

ROLES = Path("/var/lib/connlab")
CAP_SYS_RESOURCE = 24  # include/uapi/linux/capability.h
TIMEOUT = 60
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
TRACKED = 8
"""Connections over loopback that show whether there is connection tracking."""

LOG_LINES = 400
"""Kernel messages that a phase keeps, the newest: a limit says so once or a few times a second."""

_children: Set[subprocess.Popen[bytes]] = set()
_lock = threading.Lock()


class Unreadable(Exception):
    """A source that could not be read; the text is the reason."""


def end_children() -> None:
    """Kill the tools that are still running: the agent stops."""
    with _lock:
        for child in _children:
            child.kill()


def tool(name: str) -> str:
    """Full path of a tool; ``/usr/sbin`` is not on every user's path."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin")
    if not found:
        raise Unreadable(f"{name} is not installed")
    return found


def _start(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with _lock:
        _children.add(child)
    return child


def output(argv: Sequence[str]) -> str:
    """What a tool prints. :raises Unreadable: with its own words if it fails."""
    child = _start(argv)
    try:
        out, err = child.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        child.kill()
        child.communicate()
        raise Unreadable(f"{argv[0]}: no answer within {TIMEOUT} s") from error
    finally:
        with _lock:
            _children.discard(child)
    if child.returncode:
        reason = err.decode(errors="replace").strip().splitlines()
        raise Unreadable(reason[-1] if reason else f"{argv[0]}: exit status {child.returncode}")
    return out.decode(errors="replace")


def text(path: str) -> str:
    """A file's text. :raises Unreadable: with the system's reason."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error


def _slabinfo() -> str:
    try:
        return text("/proc/slabinfo")
    except Unreadable:
        return output([tool("sudo"), "-n", "cat", "/proc/slabinfo"])


def _cgroup() -> str:
    """The agent's cgroups up to the root that it sees (cgroup-v2.rst), a figure a line."""
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
                continue  # the root has none, and no group has those of a controller that is off
            lines += [f"{group} {name} {row}\n" for row in rows]
    return "".join(lines)


def _kernel_log() -> str:
    """The end of the kernel's messages; root's to read where kernel.dmesg_restrict is set."""
    rows = output([tool("sudo"), "-n", tool("dmesg")]).splitlines(True)
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
    """Caches that the kernel merged (mm/slab_common.c): name and the cache that it shares."""
    try:
        links = sorted(path for path in SLABS.iterdir() if path.is_symlink())
        return "".join(f"{path.name} {os.readlink(path)}\n" for path in links)
    except OSError as error:
        raise Unreadable(f"{SLABS}: {error.strerror}") from error


SOURCES: Dict[str, Callable[[], str]] = {
    "ss_s": lambda: output([tool("ss"), "-s"]),
    "sockstat": lambda: text("/proc/net/sockstat"),
    "sockstat6": lambda: text("/proc/net/sockstat6"),
    "meminfo": lambda: text("/proc/meminfo"),
    "slabinfo": _slabinfo,
    "slab_aliases": _slab_aliases,
    "nstat": lambda: output([tool("nstat"), "-az"]),
    "limits": _limits,
}

EXTRAS: Dict[str, Callable[[], str]] = {
    "cgroup": _cgroup,
    "conntrack_stat": lambda: text("/proc/net/stat/nf_conntrack"),
    "kernel_log": _kernel_log,
}
"""Sources that not every host has: conntrack may not be loaded, a container may not read the
kernel's messages. That one is absent is no gap in the evidence."""


def sockets(endpoints: Iterable[wire.Endpoint], side: str, state: str) -> int:
    """Lines that ``ss`` prints for sockets in a state (ss(8)); ``side`` is src or dst.

    Counted as they stream by: a million lines are 100 MB that nobody needs to keep.
    """
    terms = [f"{side} = {'[' + a + ']' if ':' in a else a}:{port}" for a, port in endpoints]
    argv = [tool("ss"), "-Htn", "state", state, "( " + " or ".join(terms) + " )"]
    child = _start(argv)
    assert child.stdout and child.stderr
    try:
        lines = 0
        while True:
            piece = child.stdout.read(1 << 18)
            if not piece:
                break
            lines += piece.count(b"\n")
        complaint = child.stderr.read().decode(errors="replace").strip()
        if child.wait():
            raise Unreadable(complaint or f"ss: exit status {child.returncode}")
    finally:
        child.stdout.close()
        child.stderr.close()
        with _lock:
            _children.discard(child)
    return lines


def pss_kib(pids: Iterable[int]) -> int:
    """Proportional set size of some processes together, KiB (proc(5), smaps_rollup)."""
    total = 0
    for pid in pids:
        try:
            rollup = text(f"/proc/{pid}/smaps_rollup")
        except Unreadable:
            continue  # it ended meanwhile
        total += sum(int(s.split()[1]) for s in rollup.splitlines() if s.startswith("Pss:"))
    return total


def collect(
    phase: str,
    count: Optional[List[wire.Endpoint]],
    side: str,
    state: str,
    held: Callable[[], int],
    pids: Sequence[int],
) -> wire.Collected:
    """One phase's evidence. ``pids``: the agent and its workers."""
    pss = pss_kib(pids)  # before the tools below cost memory of their own
    texts: Dict[str, str] = {}
    missing: Dict[str, str] = {}
    for name, read in SOURCES.items():
        try:
            texts[name] = read()
        except (Unreadable, OSError) as reason:
            missing[name] = str(reason)
    for name, read in EXTRAS.items():
        with contextlib.suppress(Unreadable, OSError):
            texts[name] = read()
    lines: Optional[int] = None
    if count:
        try:
            lines = sockets(count, side, state)
        except (Unreadable, OSError) as reason:
            missing["ss"] = str(reason)
    return {
        "event": "collected",
        "phase": phase,
        "texts": texts,
        "missing": missing,
        "held": held(),
        "established": lines,
        "workers": len(pids) - 1,
        "pss_kib": pss,
    }


def facts(sysctls: Iterable[str], nofile: Sequence[int]) -> wire.Facts:
    """This host's limits as found."""
    found: Dict[str, str] = {}
    for key in sysctls:
        try:
            found[key] = " ".join(text(sysctl_path(key)).split())
        except Unreadable:
            continue
    meminfo = text("/proc/meminfo")
    total = next(int(row.split()[1]) for row in meminfo.splitlines() if row.startswith("MemTotal:"))
    return {
        "event": "facts",
        "hostname": socket.gethostname(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpu": os.cpu_count() or 1,
        "mem_total_kib": total,
        "nofile_soft": nofile[0],
        "nofile_hard": nofile[1],
        "own_tasks": _own_tasks(),
        "tracking": _tracking(),
        "cap_sys_resource": _may_raise(),
        "sysctl": found,
        "addresses": _addresses(),
        "ehash_entries": abs(int(_or("0", "/proc/sys/net/ipv4/tcp_ehash_entries"))),
        "roles": _roles(),
    }


def sysctl_path(key: str) -> str:
    """Path of a sysctl. Dots separate; a slash in the key stands for a dot in a name."""
    return "/proc/sys/" + key.translate(str.maketrans("./", "/."))


def _or(other: str, path: str) -> str:
    try:
        return text(path).strip()
    except Unreadable:
        return other


def _own_tasks() -> int:
    """Tasks of this user, which RLIMIT_NPROC counts (getrlimit(2))."""
    own, total = os.getuid(), 0
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if path.stat().st_uid == own:
                total += sum(1 for _ in (path / "task").iterdir())
    return total


def _tracking() -> bool:
    """Whether connections are tracked in this network namespace.

    Its hooks come and go with the rules that want them, and entries outlive both
    (net/netfilter/nf_conntrack_proto.c ``nf_ct_netns_get``): so a few connections over loopback
    are tried, and whether the count goes up is what tells.
    """
    path = "/proc/sys/net/netfilter/nf_conntrack_count"
    ends: List[socket.socket] = []
    try:
        before = int(text(path))
        ends.append(socket.create_server(("127.0.0.1", 0), backlog=TRACKED))
        for _ in range(TRACKED):
            ends.append(socket.create_connection(ends[0].getsockname(), timeout=5))
            ends[-1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return int(text(path)) - before > TRACKED // 2  # others may end meanwhile
    except (Unreadable, OSError):
        return False  # no such module, or no loopback: the data plane has none either
    finally:
        for end in reversed(ends):
            end.close()


def _may_raise() -> bool:
    """Whether root on this host may raise hard limits: CAP_SYS_RESOURCE in the bounding set."""
    for line in text("/proc/self/status").splitlines():
        if line.startswith("CapBnd:"):
            return bool(int(line.split()[1], 16) >> CAP_SYS_RESOURCE & 1)
    return False


def _addresses() -> List[str]:
    """Addresses and prefixes that this host answers for: the kernel's table ``local``."""
    found: List[str] = []
    for family in ("-4", "-6"):
        query = [tool("ip"), "-j", family, "route", "show", "table", "local", "type", "local"]
        try:
            found += [route["dst"] for route in json.loads(output(query) or "[]")]
        except (Unreadable, ValueError):
            continue  # a kernel without that family
    return found


def _roles() -> Dict[str, Any]:
    found: Dict[str, Any] = {}
    for path in sorted(ROLES.glob("*.json")):
        try:
            found[path.stem] = json.loads(text(str(path)))
        except (Unreadable, ValueError) as reason:
            found[path.stem] = {"unreadable": str(reason)}
    return found
