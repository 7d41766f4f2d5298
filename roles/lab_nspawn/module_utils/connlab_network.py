"""Namespaces, links, addresses and routes of a lab.

Every function works on leftovers too, such as a namespace that is only a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.connlab_base import RUN, mounts_below, run, write
from ansible.module_utils.connlab_layout import LabError

NETNS = Path("/run/netns")
NETNS_MARK = RUN / "netns-made"
"""There if the first lab made /run/netns, which ip(8) mounts over itself: the last undoes it."""


def is_namespace(name: str) -> bool:
    """Whether a name below /run/netns is a namespace, and not the file that a crash left."""
    return str(NETNS / name) in mounts_below(NETNS / name)


def namespaces() -> list[str]:
    """Names below /run/netns, of namespaces and of leftovers."""
    return sorted(os.listdir(NETNS)) if NETNS.is_dir() else []


def add_namespace(name: str, parent: str | None = None) -> None:
    """Make a namespace, as a child of another one where its settings are to be inherited.

    By nsenter(1) and not ``ip netns exec``: the latter has a mount namespace of its own, and the
    new name would be lost with it.
    """
    if not mounts_below(NETNS):
        write(NETNS_MARK, "")
    enter = ["nsenter", f"--net={NETNS / parent}"] if parent else []
    run(*enter, "ip", "netns", "add", name)


def delete_namespace(name: str) -> None:
    """Remove a namespace, or the file that is left of one."""
    path = NETNS / name
    for point in mounts_below(path):
        run("umount", "--lazy", point)
    path.unlink(missing_ok=True)


def sysctl(name: str, key: str, value: int | None = None) -> int:
    """A value below /proc/sys/net of a namespace, after setting it if one is given.

    :raises LabError: if it cannot be read, or reads back otherwise than it was set.
    """
    path = "/proc/sys/" + key.replace(".", "/")
    enter = ["nsenter", f"--net={NETNS / name}"]
    if value is not None:
        run(*enter, "sh", "-c", f"echo {value} >{path}")
    found = int(run(*enter, "cat", path))
    if value is not None and found != value:
        raise LabError(f"{key} in namespace {name}: set {value}, found {found}")
    return found


def links(name: str | None) -> dict[str, dict[str, Any]]:
    """Links of a namespace (None: the machine's own) by name: flags and addresses as ip(8) has."""
    where = ["-n", name] if name else []
    listing = run("ip", "-j", *where, "addr", "show", check=False)
    return {entry["ifname"]: entry for entry in json.loads(listing or "[]") if entry.get("ifname")}


def addresses(link: dict[str, Any]) -> set[str]:
    """Addresses with prefix lengths of a link as links() gives it."""
    return {f"{each['local']}/{each['prefixlen']}" for each in link.get("addr_info", [])}


def routes() -> dict[str, str]:
    """IPv4 routes of the machine's own namespace: destinations, each with interface or gateway."""
    listing = json.loads(run("ip", "-j", "-4", "route", "show") or "[]")
    return {
        entry["dst"]: entry.get("dev", entry.get("gateway", "no interface"))
        for entry in reversed(listing)
        if "dst" in entry
    }


def batch(name: str | None, lines: list[str]) -> None:
    """Run ip(8) commands in a namespace, in one process.

    :raises LabError: if one fails; those after it have not been run.
    """
    where = ["-n", name] if name else []
    run("ip", *where, "-batch", "-", text="\n".join(lines) + "\n")


def delete_links(name: str | None, names: Iterable[str]) -> None:
    """Delete links of a namespace at once, not some time after the namespace itself.

    A link that goes with another one, as the second end of a veth pair does, is no error.
    """
    where = ["-n", name] if name else []
    lines = "".join(f"link delete {each}\n" for each in names)
    run("ip", *where, "-force", "-batch", "-", text=lines, check=False)
    left = sorted(set(names) & set(links(name)))
    if left:
        raise LabError(f"links {', '.join(left)} in namespace {name or 'of PID 1'}: not deleted")


def ssh_answers(address: str, limit: float) -> bool:
    """Whether an SSH server says its name at an address within limit seconds."""
    try:
        with socket.create_connection((address, 22), timeout=limit) as connection:
            return connection.recv(8).startswith(b"SSH-2.0")
    except OSError:
        return False


def in_namespace(name: str) -> set[int]:
    """Pids whose network namespace is the named one."""
    try:
        wanted = os.stat(NETNS / name)
    except OSError:
        return set()
    if not is_namespace(name):
        return set()
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                there = os.stat(f"/proc/{entry}/ns/net")
                if (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino):
                    found.add(int(entry))
    return found


def remove_netns_directory() -> None:
    """Undo what ip(8) made for the first namespace, once the last one is gone."""
    if NETNS_MARK.exists() and not namespaces():
        for _ in mounts_below(NETNS):
            run("umount", NETNS)
        if NETNS.is_dir():
            NETNS.rmdir()
        NETNS_MARK.unlink()
