"""Bring a lab to its wanted state: its switch, its namespaces, its hosts."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils import connlab_base as base
from ansible.module_utils import connlab_limits as limits
from ansible.module_utils import connlab_network as network
from ansible.module_utils import connlab_processes as processes
from ansible.module_utils.connlab_files import (
    configuration,
    host_files,
    hosts_file,
    last_words,
    nspawn_arguments,
)
from ansible.module_utils.connlab_layout import (
    Host,
    Lab,
    LabError,
    cgroup_name,
    in_use,
    mac_address,
    namespace,
)
from ansible.module_utils.connlab_plan import Plan, decide
from ansible.module_utils.connlab_site import Site

GRACE = 10
"""Seconds that a host that was already running has to answer; it may be rebooting."""

UNSHARE = ("unshare", "--mount", "--propagation", "slave")
"""Starts a command in its own mount namespace, into which the machine's unmounts propagate."""

PLANES = ("data", "mgmt")
"""Veth pairs of the switch namespace; each interface of a host is a macvlan on one end."""


class Maker:
    """Brings a lab to its wanted state, and reports what it did."""

    def __init__(self, site: Site, lab: Lab, image: Path, supervisor: Path) -> None:
        self.site = site
        self.lab = lab
        self.image = image
        self.supervisor = supervisor
        self.ehash = "net.ipv4.tcp_ehash_entries"
        self.found = {
            name: site.look(name)
            for name in sorted(site.host_names() | {host.name for host in lab.hosts})
        }
        self.switch = self._switch_is_up()
        self.plan: Plan = decide(lab, str(image), self.found, self.switch)
        self.leg = self.switch and self._leg_is_up()
        self.settings = self._settings_are_current()

    @property
    def changes(self) -> bool:
        """Return whether anything has to be changed."""
        return not (self.plan.empty and self.switch and self.leg and self.settings)

    def _switch_is_up(self) -> bool:
        if not network.is_namespace(self.lab.switch):
            return False
        there = network.links(self.lab.switch)
        ends = [f"{plane}{end}" for plane in PLANES for end in (0, 1)]
        return all("UP" in there.get(end, {}).get("flags", []) for end in ends)

    def _leg_is_up(self) -> bool:
        leg = network.links(None).get(self.lab.controller_interface, {})
        ours = self.lab.controller in network.addresses(leg)
        there = network.routes().get(self.lab.management_route) == self.lab.controller_interface
        return "UP" in leg.get("flags", []) and ours and there

    def _lab_json(self) -> str:
        about = {"name": self.lab.name, "image": str(self.image), "controller": self.lab.controller}
        return json.dumps({**about, "hosts": [host.name for host in self.lab.hosts]}) + "\n"

    def _settings_are_current(self) -> bool:
        state = self.site.state
        return (
            base.read(state / "lab.json") == self._lab_json()
            and base.read(state / "etc-hosts") == hosts_file(self.lab)
            and self.site.owner() == self.site.directory
            and base.is_private(state / "hosts")
        )

    def check_prefix(self) -> None:
        """Refuse a management prefix that the machine uses elsewhere.

        :raises LabError: naming the conflict.
        """
        leg = self.lab.controller_interface
        taken = in_use(
            self.lab.management_route,
            {
                address.split("/")[0]: name
                for name, link in network.links(None).items()
                for address in network.addresses(link)
                if name != leg
            },
            {to: by for to, by in network.routes().items() if by != leg},
            base.read(Path("/etc/resolv.conf")),
        )
        if taken:
            raise LabError(
                f"lab_mgmt_prefix: {self.lab.management_route} already contains {taken} of this "
                "machine: choose another /24 that it does not use"
            )

    def make(self, boot_limit: float, stop_limit: float) -> None:
        """Carry out the plan, and wait until every host answers.

        :raises LabError: if a host does not come up; the message has the end of its console.
        """
        plan, site = self.plan, self.site
        self._write_settings()
        site.stop([*plan.remove, *plan.stop], stop_limit)
        for name in plan.remove:
            site.remove_network(name)
            site.remove_files(name)
        for name in plan.wipe:
            site.remove_files(name)
        if not self.switch:
            self._make_switch()
        if not self.leg:
            self._make_leg()
        by_name = {host.name: host for host in self.lab.hosts}
        for name in plan.network:
            self._make_network(by_name[name])
        for name in plan.start:
            self._start(by_name[name])
        steady = [host for host in self.lab.hosts if host.name not in plan.start]
        silent = self._wait(steady, GRACE)
        if silent:
            site.stop([host.name for host in silent], stop_limit)
            for host in silent:
                self.plan.reasons[host.name] = "it did not answer"
                self.plan.start.append(host.name)
                self._start(host)
        silent = self._wait(self.lab.hosts, boot_limit)
        if silent:
            raise LabError(
                f"host {silent[0].name}: no answer from {silent[0].management.split('/')[0]} "
                f"port 22 within {boot_limit:.0f} s; {self._console(silent[0].name)}"
            )

    def answers(self) -> bool:
        """Return whether every wanted host answers now; does not wait for a host that boots."""
        return not self._wait(self.lab.hosts, 0)

    def _write_settings(self) -> None:
        base.RUN.mkdir(parents=True, exist_ok=True)
        limits.mark_nspawn()
        limits.allow_inotify({cgroup_name(self.lab.name, host.name) for host in self.lab.hosts})
        base.write(self.site.owner_file, f"{self.site.directory}\n")
        base.private(self.site.directory)
        base.private(self.site.state / "hosts")
        base.write(self.site.state / "lab.json", self._lab_json())
        # Written in place, because this inode is bind-mounted to the running hosts' /etc/hosts.
        (self.site.state / "etc-hosts").write_text(hosts_file(self.lab))

    def _make_switch(self) -> None:
        self.site.remove_switch()
        network.add_namespace(self.lab.switch)
        lines = []
        for plane in PLANES:
            lines.append(f"link add {plane}0 type veth peer name {plane}1")
            lines += [f"link set {plane}{end} addrgenmode none up" for end in (0, 1)]
        network.batch(self.lab.switch, lines)
        self.switch = True

    def _make_leg(self) -> None:
        leg, lab = self.lab.controller_interface, self.lab
        if leg in network.links(None):
            network.delete_links(None, [leg])
        child = self._child(leg, "controller", "mgmt0", str(os.getpid()))
        network.batch(lab.switch, [child])
        source = lab.controller.split("/")[0]
        up = [f"link set {leg} addrgenmode none up", f"address add {lab.controller} dev {leg}"]
        up.append(f"route add {lab.management_route} dev {leg} src {source}")
        network.batch(None, up)

    def _child(self, name: str, host: str, parent: str, where: str) -> str:
        mac = mac_address(self.lab.name, host, name)
        link = f"link add link {parent} name {name} address {mac} netns {where}"
        return f"{link} type macvlan mode bridge"

    def _make_network(self, host: Host) -> None:
        lab, name = self.lab, namespace(self.lab.name, host.name)
        self.site.remove_network(host.name)
        if lab.ehash:
            network.sysctl(lab.switch, "net.ipv4.tcp_child_ehash_entries", lab.ehash)
        network.add_namespace(name, parent=lab.switch)
        if lab.ehash and (size := network.sysctl(name, self.ehash)) < lab.ehash:
            raise LabError(
                f"host {host.name}: {self.ehash}: wanted {lab.ehash}, found {size}: the kernel had "
                "no memory for the table (8 bytes a bucket), try fewer connections or clients"
            )
        data = self._child(lab.data_interface, host.name, "data0", name)
        management = self._child(lab.management_interface, host.name, "mgmt0", name)
        network.batch(lab.switch, [data, management])

    def _start(self, host: Host) -> None:
        site, lab = self.site, self.lab
        directory = site.host_directory(host.name)
        base.unmount_below(directory)
        for each in ("upper", "work", "root"):
            (directory / each).mkdir(parents=True, exist_ok=True)
        (directory / "upper").chmod(0o755)
        for path, text in host_files(lab, host).items():
            base.write(directory / "upper" / path, text)
        lower = directory / "lower"
        lower.unlink(missing_ok=True)
        lower.symlink_to(self.image / "rootfs")
        about = {"image": str(self.image), "configuration": configuration(lab, host)}
        base.write(directory / "host.json", json.dumps(about) + "\n")
        for each in ("stop", "exit"):
            (directory / each).unlink(missing_ok=True)
        supervisor = site.state / "supervise.sh"
        base.write(supervisor, self.supervisor.read_text(), 0o755)
        cgroup = processes.cgroups(cgroup_name(lab.name, host.name))
        processes.make_cgroup(cgroup)
        hosts_path = str(site.state / "etc-hosts")
        arguments = nspawn_arguments(lab, host, hosts_path, limits.nofile_limit())
        with (directory / "console.log").open("wb") as console:
            process = subprocess.Popen(
                [*UNSHARE, supervisor, directory, *cgroup, "--", *arguments],
                cwd="/",
                # Without the caller's environment, which may contain a proxy's password.
                env={
                    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    "TERM": "dumb",
                    # /proc/sys/net belongs to the host's namespace, so the host may write it.
                    "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
                },
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        processes.write_pid_file(directory / "supervisor.pid", process.pid)

    def _wait(self, hosts: Iterable[Host], limit: float) -> list[Host]:
        """Return the hosts that do not answer within limit seconds.

        :raises LabError: if a host's supervisor ends meanwhile.
        """
        silent = list(hosts)
        deadline = time.monotonic() + limit
        while True:
            silent = [host for host in silent if not self._is_ready(host)]
            if not silent or time.monotonic() > deadline:
                return silent
            for host in silent:
                directory = self.site.host_directory(host.name)
                if processes.alive(directory / "supervisor.pid") is None:
                    raise LabError(f"host {host.name}: ended; {self._console(host.name)}")
            time.sleep(0.1)

    def _is_ready(self, host: Host) -> bool:
        there = network.links(namespace(self.lab.name, host.name))
        data = network.addresses(there.get(self.lab.data_interface, {}))
        management = network.addresses(there.get(self.lab.management_interface, {}))
        if not set(host.data) <= data or host.management not in management:
            return False
        return network.ssh_answers(host.management.split("/")[0], 1)

    def _console(self, host: str) -> str:
        path = self.site.host_directory(host) / "console.log"
        last = last_words(path.read_text(errors="replace"))
        return f"console ({path}): {last or 'empty'}"

    def report(self) -> dict[str, Any]:
        """Return for each host its status, the action and its reason, and its addresses."""
        done = {}
        for host in self.lab.hosts:
            name = namespace(self.lab.name, host.name)
            pid_file = self.site.host_directory(host.name) / "supervisor.pid"
            started = host.name in self.plan.start
            entry: dict[str, Any] = {
                "status": "running" if processes.alive(pid_file) else "absent",
                "action": "started" if started else "none",
                "reason": self.plan.reasons.get(host.name, ""),
                "management": host.management.split("/")[0],
                "data": [address.split("/")[0] for address in host.data],
            }
            if network.is_namespace(name):
                entry["ehash_entries"] = network.sysctl(name, self.ehash)
            done[host.name] = entry
        return done
