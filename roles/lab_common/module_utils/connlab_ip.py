"""ip(8) on this host, and the systemd-networkd files that configure an interface at boot.

Runs on the hosts: standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

NETWORK = "/etc/systemd/network"


class Runner(Protocol):
    """The part of AnsibleModule that runs commands."""

    def get_bin_path(self, arg: str, required: bool = ..., opt_dirs: list[str] | None = ...) -> str:
        """Return a program's path."""

    def run_command(self, args: list[str], data: str | None = ...) -> tuple[int, str, str]:
        """Return status, standard output and standard error of a command."""


class Ip:
    """ip(8) on this host."""

    def __init__(self, module: Runner) -> None:
        self.module = module
        self.path = module.get_bin_path("ip", required=True, opt_dirs=["/usr/sbin", "/sbin"])

    def json(self, *words: str) -> list[dict[str, Any]]:
        """Return the JSON output of ip(8). Errors: ValueError with its error message."""
        code, out, err = self.module.run_command([self.path, "-j", *words])
        if code:
            raise ValueError(f"ip {' '.join(words)}: {err.strip()}")
        return [entry for entry in json.loads(out or "[]") if entry]

    def addresses(self, interface: str) -> dict[str, str]:
        """Return an interface's addresses as {address: address/bits}."""
        links = self.json("addr", "show", "dev", interface)
        return {
            entry["local"]: f"{entry['local']}/{entry['prefixlen']}"
            for link in links
            for entry in link.get("addr_info", [])
        }

    def routes(self) -> dict[str, list[str]]:
        """Return the prefixes (not single addresses) that are local, with their devices.

        After a reboot that kept the network namespace a prefix may exist twice: on lo, and on the
        interface that systemd-networkd added it to.
        """
        found: dict[str, list[str]] = {}
        for entry in self.json("route", "show", "table", "local", "type", "local"):
            if "/" in entry["dst"]:
                found.setdefault(entry["dst"], []).append(entry["dev"])
        return found

    def prefixes(self) -> dict[str, tuple[str, str]]:
        """Return the IPv4 routes of the main table: {prefix: (gateway or "", device)}."""
        found: dict[str, tuple[str, str]] = {}
        for entry in self.json("-4", "route", "show", "table", "main"):
            whole = entry["dst"] if "/" in entry["dst"] or entry["dst"] == "default" else ""
            prefix = whole or f"{entry['dst']}/32"
            found.setdefault(prefix, (entry.get("gateway", ""), entry.get("dev", "")))
        return found

    def batch(self, commands: Iterable[str]) -> None:
        """Run all commands in one ip(8) process. Errors: ValueError with its error message."""
        text = "".join(f"{command}\n" for command in commands)
        if not text:
            return
        code, _, err = self.module.run_command([self.path, "-batch", "-"], data=text)
        if code:
            raise ValueError(f"ip -batch: {err.strip()}")


def network_files(interface: str) -> list[Path]:
    """Return the systemd-networkd files named after an interface, those in /etc first."""
    roots = (Path(NETWORK), Path("/run/systemd/network"))
    return [path for root in roots for path in sorted(root.glob(f"*-{interface}.network"))]


def dropin_path(interface: str, name: str) -> str | None:
    """Return the path of a drop-in for the interface's systemd-networkd file.

    None if there is no such file: anything that is added then ends with this boot.
    """
    lasting = network_files(interface)
    return f"{NETWORK}/{lasting[0].name}.d/{name}.conf" if lasting else None


def not_lasting(interface: str, what: str) -> str:
    """Return why `what` does not survive a reboot, if there is no `dropin_path`."""
    return (
        f"wanted a systemd-networkd file for {interface} in {NETWORK} or "
        f"/run/systemd/network, found none: the {what} end with this boot"
    )
