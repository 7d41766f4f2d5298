"""The state of a lab on this machine: inspect it and remove it."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from ansible.module_utils import connlab_base as base
from ansible.module_utils import connlab_limits as limits
from ansible.module_utils import connlab_network as network
from ansible.module_utils import connlab_processes as processes
from ansible.module_utils.connlab_layout import (
    LabError,
    cgroup_name,
    check_name,
    host_of,
    interface_name,
    machine_name,
    namespace,
)
from ansible.module_utils.connlab_plan import Found


class Site:
    """The state directory of a lab, and everything on the machine under the lab's name."""

    def __init__(self, directory: Path, name: str) -> None:
        """:raises LabError: if the name is not valid."""
        check_name(name)
        self.directory = directory
        self.name = name
        self.state = directory / name
        self.owner_file = base.RUN / f"{name}.owner"

    def host_directory(self, host: str) -> Path:
        """Return the directory of a host's overlay, pid file and console log."""
        return self.state / "hosts" / host

    def owner(self) -> Path | None:
        """Return the state directory (.lab) that owns the lab of this name on this machine."""
        text = base.read(self.owner_file).strip()
        return Path(text) if text else None

    def host_names(self) -> set[str]:
        """Return the names of hosts that have a directory, a cgroup or a namespace."""
        names = {path.name for path in self.state.glob("hosts/*")}
        for top in processes.cgroups(""):
            names |= {host_of(self.name, path.name) or "" for path in top.glob("*.connlab")}
        names |= {host_of(self.name, each) or "" for each in network.namespaces()}
        return names - {""}

    def look(self, host: str) -> Found:
        """Return the current state of one host."""
        directory = self.host_directory(host)
        cgroup = processes.cgroups(cgroup_name(self.name, host))
        found = Found(
            alive=processes.alive(directory / "supervisor.pid") is not None,
            processes=bool(processes.members(cgroup)),
            traces=directory.exists() or any(path.exists() for path in cgroup),
        )
        with contextlib.suppress(ValueError):
            kept = json.loads(base.read(directory / "host.json") or "{}")
            found.image = kept.get("image", "")
            found.configuration = kept.get("configuration", "")
        name = namespace(self.name, host)
        found.namespace = network.is_namespace(name)
        if found.namespace:
            found.links = frozenset(network.links(name))
            found.ehash = network.sysctl(name, "net.ipv4.tcp_ehash_entries")
        return found

    def stop(self, hosts: Iterable[str], limit: float) -> None:
        """Power hosts off in parallel, and kill their remaining processes after limit seconds."""
        groups = {host: processes.cgroups(cgroup_name(self.name, host)) for host in hosts}
        for host, cgroup in groups.items():
            directory = self.host_directory(host)
            if directory.is_dir():
                base.write(directory / "stop", "")
            processes.terminate(processes.members(cgroup), "systemd-nspawn")
        deadline = time.monotonic() + limit
        while any(map(processes.members, groups.values())) and time.monotonic() < deadline:
            time.sleep(0.05)
        for host, cgroup in groups.items():
            self._bury(host, cgroup)

    def _bury(self, host: str, cgroup: list[Path]) -> None:
        deadline = time.monotonic() + 10
        name = namespace(self.name, host)
        while left := processes.members(cgroup) | network.in_namespace(name):
            if time.monotonic() > deadline:
                raise LabError(f"host {host}: processes do not die: {sorted(left)[:5]}")
            processes.kill(left)
            time.sleep(0.05)
        processes.remove_cgroup(cgroup)
        directory = self.host_directory(host)
        roots = [directory / "upper", directory / "lower"]
        inodes = {path.stat().st_ino for path in roots if path.exists()}
        limits.remove_nspawn_traces(machine_name(self.name, host), inodes)
        for name in ("supervisor.pid", "stop", "exit"):
            (directory / name).unlink(missing_ok=True)

    def remove_network(self, host: str) -> None:
        """Remove a host's namespace, after its links: they would clash with those of a new one."""
        name = namespace(self.name, host)
        if network.is_namespace(name):
            network.delete_links(name, [link for link in network.links(name) if link != "lo"])
        network.delete_namespace(name)

    def remove_switch(self) -> None:
        """Remove the switch namespace and the machine's own management interface."""
        leg = interface_name(self.name, "ctl")
        if leg in network.links(None):
            network.delete_links(None, [leg])
        self.remove_network("switch")

    def remove_files(self, host: str) -> None:
        """Remove a host's directory with its overlay."""
        directory = self.host_directory(host)
        base.unmount_below(directory)
        if directory.exists():
            shutil.rmtree(directory)


def unmake(site: Site, stop_limit: float) -> list[str]:
    """Remove a lab, whichever checkout created it, and return the removed parts.

    :param stop_limit: seconds for the hosts to power off before they are killed.
    """
    owner = site.owner()
    sites = [site]
    if owner and owner != site.directory and (owner / site.name / "lab.json").is_file():
        sites.append(Site(owner, site.name))
    gone = []
    for each in sites:
        hosts = sorted(each.host_names())
        each.stop(hosts, stop_limit)
        for host in hosts:
            each.remove_network(host)
            each.remove_files(host)
        gone += hosts
        for name in ("lab.json", "etc-hosts", "supervise.sh"):
            if (each.state / name).exists():
                (each.state / name).unlink()
                gone.append(name)
        for directory in (each.state / "hosts", each.state):
            with contextlib.suppress(OSError):
                directory.rmdir()
    switch = namespace(site.name, "switch")
    leg = interface_name(site.name, "ctl")
    if switch in network.namespaces() or leg in network.links(None):
        gone.append("switch")
    site.remove_switch()
    if owner:
        gone.append("owner file")
        site.owner_file.unlink()
    limits.leave_as_found()
    return gone


def what_is_there(site: Site) -> list[str]:
    """Return what unmake() would remove, for check mode."""
    found = sorted(site.host_names())
    if namespace(site.name, "switch") in network.namespaces():
        found.append("switch")
    if site.owner():
        found.append("owner file")
    return found


def refuse_if_owned_elsewhere(site: Site) -> bool:
    """Return whether a lab of this name from another checkout left something behind.

    :raises LabError: if its hosts are running.
    """
    owner = site.owner()
    if owner is None or owner == site.directory:
        return False
    other = Site(owner, site.name)
    running = [
        host
        for host in sorted(other.host_names())
        if processes.members(processes.cgroups(cgroup_name(site.name, host)))
    ]
    if running:
        raise LabError(
            f"lab {site.name} is running already ({', '.join(running)}) and belongs to {owner}: "
            "`make down` there or here removes it, or choose another lab_name and lab_mgmt_prefix"
        )
    return True
