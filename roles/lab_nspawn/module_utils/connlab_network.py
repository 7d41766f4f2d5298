"""Namespaces, links, addresses and routes of a lab.

Every function also handles leftovers, such as a namespace of which only the file is left.
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
"""Exists if the first lab created /run/netns, which ip(8) mounts on itself; the last undoes it."""


def is_namespace(name: str) -> bool:
    """Return whether a name in /run/netns is a namespace, and not a file that a crash left."""
    return str(NETNS / name) in mounts_below(NETNS / name)


def namespaces() -> list[str]:
    """Return the names in /run/netns, of namespaces and of leftovers."""
    return sorted(os.listdir(NETNS)) if NETNS.is_dir() else []


def add_namespace(name: str, parent: str | None = None) -> None:
    """Create a namespace, as a child of `parent` if it should inherit that one's settings.

    This uses nsenter(1) instead of ``ip netns exec``, which creates its own mount namespace, with
    which the new name would be lost.
    """
    if not mounts_below(NETNS):
        write(NETNS_MARK, "")
    enter = ["nsenter", f"--net={NETNS / parent}"] if parent else []
    run(*enter, "ip", "netns", "add", name)


def delete_namespace(name: str) -> None:
    """Remove a namespace, or the file that one left."""
    path = NETNS / name
    for point in mounts_below(path):
        run("umount", "--lazy", point)
    path.unlink(missing_ok=True)


def sysctl(name: str, key: str, value: int | None = None) -> int:
    """Return a value in /proc/sys/net of a namespace, after setting it if one is given.

    :raises LabError: if it cannot be read, or reads back as another value.
    """
    path = "/proc/sys/" + key.replace(".", "/")
    enter = ["nsenter", f"--net={NETNS / name}"]
    if value is not None:
        run(*enter, "sh", "-c", f"echo {value} >{path}")
    found = int(run(*enter, "cat", path))
    if value is not None and found != value:
        raise LabError(f"{key} in namespace {name}: wanted {value}, found {found}")
    return found


def links(name: str | None) -> dict[str, dict[str, Any]]:
    """Return the links of a namespace (None: the machine's own) by name, as ip(8) prints them."""
    where = ["-n", name] if name else []
    listing = run("ip", "-j", *where, "addr", "show", check=False)
    return {entry["ifname"]: entry for entry in json.loads(listing or "[]") if entry.get("ifname")}


def addresses(link: dict[str, Any]) -> set[str]:
    """Return the addresses, with prefix lengths, of a link that links() returned."""
    return {f"{each['local']}/{each['prefixlen']}" for each in link.get("addr_info", [])}


def routes() -> dict[str, str]:
    """Return the machine's own IPv4 routes: interface or gateway by destination."""
    listing = json.loads(run("ip", "-j", "-4", "route", "show") or "[]")
    return {
        entry["dst"]: entry.get("dev", entry.get("gateway", "no interface"))
        for entry in reversed(listing)
        if "dst" in entry
    }


def batch(name: str | None, lines: list[str]) -> None:
    """Run ip(8) commands in a namespace, in one process.

    :raises LabError: if a command fails; the commands after it are not run.
    """
    where = ["-n", name] if name else []
    run("ip", *where, "-batch", "-", text="\n".join(lines) + "\n")


def delete_links(name: str | None, names: Iterable[str]) -> None:
    """Delete links of a namespace immediately, not some time after the namespace itself.

    A link that disappears with another one, such as the second end of a veth pair, is no error.
    """
    where = ["-n", name] if name else []
    lines = "".join(f"link delete {each}\n" for each in names)
    run("ip", *where, "-force", "-batch", "-", text=lines, check=False)
    left = sorted(set(names) & set(links(name)))
    if left:
        raise LabError(f"links {', '.join(left)} in namespace {name or 'of PID 1'}: not deleted")


def ssh_answers(address: str, limit: float) -> bool:
    """Return whether an SSH server at an address sends its version within limit seconds."""
    try:
        with socket.create_connection((address, 22), timeout=limit) as connection:
            return connection.recv(8).startswith(b"SSH-2.0")
    except OSError:
        return False


def in_namespace(name: str) -> set[int]:
    """Return the pids of the processes in the named network namespace."""
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
    """Remove the directory that ip(8) created for namespaces, once the last one is gone."""
    if NETNS_MARK.exists() and not namespaces():
        for _ in mounts_below(NETNS):
            run("umount", NETNS)
        if NETNS.is_dir():
            NETNS.rmdir()
        NETNS_MARK.unlink()
