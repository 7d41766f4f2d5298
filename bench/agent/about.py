"""Facts about a host: its kernel, its limits, its addresses, and what the roles changed on it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
from pathlib import Path
from typing import Any, Dict, Iterable, List, Sequence

from bench import wire
from bench.agent.probe import Unreadable, output, text, tool
from bench.agent.sockets import reset_on_close

ROLES = Path("/var/lib/connlab")
CAP_SYS_RESOURCE = 24  # include/uapi/linux/capability.h

ALL = {"-4": "0.0.0.0/0", "-6": "::/0"}
"""Prefixes that ip-route(8) prints as ``default``, by address family."""

TRACKED = 8
"""Connections over loopback that show whether connections are tracked."""


def facts(sysctls: Iterable[str], nofile: Sequence[int]) -> wire.Facts:
    """Return this host's facts, with its limits as they are now."""
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
    """Return the path of a sysctl. Dots separate; a slash in the key stands for a dot in a name."""
    return "/proc/sys/" + key.translate(str.maketrans("./", "/."))


def _or(other: str, path: str) -> str:
    try:
        return text(path).strip()
    except Unreadable:
        return other


def _own_tasks() -> int:
    """Return the number of this user's tasks, which RLIMIT_NPROC counts (getrlimit(2))."""
    own, total = os.getuid(), 0
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if path.stat().st_uid == own:
                total += sum(1 for _ in (path / "task").iterdir())
    return total


def _tracking() -> bool:
    """Return whether connections are tracked in this network namespace.

    The hooks of conntrack come and go with the rules that need them, and its entries outlive both
    (net/netfilter/nf_conntrack_proto.c ``nf_ct_netns_get``). So this opens a few connections over
    loopback and looks whether the number of entries goes up.
    """
    path = "/proc/sys/net/netfilter/nf_conntrack_count"
    ends: List[socket.socket] = []
    try:
        before = int(text(path))
        ends.append(socket.create_server(("127.0.0.1", 0), backlog=TRACKED))
        for _ in range(TRACKED):
            ends.append(socket.create_connection(ends[0].getsockname(), timeout=5))
            reset_on_close(ends[-1])
        return int(text(path)) - before > TRACKED // 2  # other connections may end meanwhile
    except (Unreadable, OSError):
        return False  # no such module, or no loopback: the data plane has none either
    finally:
        for end in reversed(ends):
            end.close()


def _may_raise() -> bool:
    """Return whether root may raise hard limits here: CAP_SYS_RESOURCE in the bounding set."""
    for line in text("/proc/self/status").splitlines():
        if line.startswith("CapBnd:"):
            return bool(int(line.split()[1], 16) >> CAP_SYS_RESOURCE & 1)
    return False


def _addresses() -> List[str]:
    """Return addresses and prefixes that this host answers for (the kernel's table ``local``)."""
    found: List[str] = []
    for family in ("-4", "-6"):
        query = [tool("ip"), "-j", family, "route", "show", "table", "local", "type", "local"]
        try:
            told = [route["dst"] for route in json.loads(output(query) or "[]")]
        except (Unreadable, ValueError):
            continue  # a kernel without that family
        found += [ALL[family] if dst == "default" else dst for dst in told]
    return found


def _roles() -> Dict[str, Any]:
    found: Dict[str, Any] = {}
    for path in sorted(ROLES.glob("*.json")):
        try:
            found[path.stem] = json.loads(text(str(path)))
        except (Unreadable, ValueError) as reason:
            found[path.stem] = {"unreadable": str(reason)}
    return found
