"""Labs that faults are put into: small hosts of namespaces alone, and those of the playbooks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from hosts import Host, run

from bench.perf.netns import Namespaces

TOP = Path(__file__).parents[2]
HERE = Path(__file__).parent
CLOCK = HERE / "clock"
SERVER, CLIENTS = "server1", ("client1", "client2")
NAMES = (SERVER, *CLIENTS)
NOBODY = "ctl"
"""The controller's own namespace beside small hosts."""


class Lab:
    """Hosts, and how a controller reaches them."""

    def __init__(self, hosts: Mapping[str, Host]) -> None:
        self.hosts = dict(hosts)

    def controller(self, *words: str) -> list[str]:
        """A command line as it has to be run to reach the hosts."""
        raise NotImplementedError

    def inventory(self) -> list[str]:
        """Options that name the hosts."""
        raise NotImplementedError

    def clock(self, host: Host) -> Path:
        """The file that has the seconds by which a host's clock is off."""
        raise NotImplementedError("small hosts have the clock of the machine")

    def heal(self, host: Host) -> None:
        """Have a host be there again after it was powered off."""
        raise NotImplementedError


class SmallHosts(Lab):
    """One server and two clients of namespaces; used as a context."""

    def __init__(self, folder: Path) -> None:
        """:param folder: for keys and the inventory."""
        self.folder = folder
        self.prefix = f"flt{os.getpid()}"
        super().__init__(
            {name: Host(name, f"{self.prefix}-{name}", own_files=False) for name in NAMES}
        )
        self._data = {SERVER: "198.18.0.1", "client1": "198.18.1.1", "client2": "198.18.2.1"}
        self._management = {name: f"169.254.77.{i}" for i, name in enumerate(NAMES, start=1)}
        self._servers: dict[str, subprocess.Popen[str]] = {}
        self._ports: dict[str, str] = {}
        addresses = {name: [f"{self._data[name]}/15"] for name in NAMES}
        self.net = Namespaces(self.prefix, {**addresses, NOBODY: []})

    def __enter__(self) -> SmallHosts:
        self.net.__enter__()
        try:
            for number, name in enumerate([*NAMES, NOBODY]):
                self._manage(name, self._management.get(name, "169.254.77.254"), f"mg{number}")
            for name in NAMES:
                self._boot(name)
            self._write()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._servers.values():
            process.kill()  # and with it the first process of the host, by --kill-child
            process.communicate(timeout=10)
        self.net.__exit__(None, None, None)

    def _manage(self, name: str, address: str, link: str) -> None:
        """A second interface, on the switch's other end."""
        inside = ["ip", "-n", self.net.name(name)]
        switch = ["ip", "-n", self.net.name("sw")]
        run(
            *switch, "link", "add", "link", "up1", "name", link, "type", "macvlan", "mode", "bridge"
        )
        run(*switch, "link", "set", link, "netns", self.net.name(name), "name", "mgmt0")
        run(*inside, "addr", "add", f"{address}/24", "dev", "mgmt0")
        run(*inside, "link", "set", "mgmt0", "up")

    def _boot(self, name: str) -> None:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        script = [sys.executable, str(HERE / "sshhost.py"), self._management[name], str(folder)]
        self._servers[name] = subprocess.Popen(
            self.net.enter(name) + spaces + script,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TOP)},
        )
        out = self._servers[name].stdout
        assert out
        self._ports[name] = out.readline().strip()

    def _write(self) -> None:
        groups = {"servers": [SERVER], "clients": list(CLIENTS)}
        lines = ["all:", "  children:"]
        for group, names in groups.items():
            lines += [f"    {group}:", "      hosts:"]
            for name in names:
                folder = self.folder / name
                lines += [
                    f"        {name}:",
                    f"          ansible_host: {self._management[name]}",
                    f"          ansible_port: {self._ports[name]}",
                    "          ansible_user: root",
                    f"          ansible_ssh_private_key_file: {folder}/user_key",
                    f"          lab_known_hosts: {folder}/known_hosts",
                    f"          lab_data_address: {self._data[name]}",
                ]
        (self.folder / "hosts.yml").write_text("\n".join(lines) + "\n")

    def controller(self, *words: str) -> list[str]:
        return [*self.net.enter(NOBODY), *words]

    def inventory(self) -> list[str]:
        return ["-i", str(self.folder / "hosts.yml")]

    def heal(self, host: Host) -> None:
        if host.init() is None:
            process = self._servers.pop(host.name)
            process.kill()
            process.communicate(timeout=10)
            self._boot(host.name)
            self._write()
        host.mend()


class Playbooks(Lab):
    """A lab that playbooks/create.yml and tune.yml have made, or will."""

    def __init__(self, name: str, extra: Sequence[str]) -> None:
        """:param extra: options for ansible-playbook and for the benchmark: ``-e`` and a value."""
        super().__init__({host: Host(host, f"{name}-{host}") for host in NAMES})
        self.extra = [*extra]
        self._listed: Path | None = None

    def list(self, folder: Path) -> None:
        """Work the inventory out once, into a folder: every run would do that again."""
        words = ["ansible-inventory", "-i", str(TOP / "inventory" / "local"), *self.extra]
        self._listed = folder / "hosts.yml"
        run(*words, "--list", "--yaml", "--output", self._listed)

    def play(self, *names: str, seconds: float = 600) -> None:
        """Run playbooks. :raises RuntimeError: if one fails."""
        for name in names:
            run("ansible-playbook", TOP / "playbooks" / f"{name}.yml", *self.extra, seconds=seconds)

    def controller(self, *words: str) -> list[str]:
        return list(words)

    def inventory(self) -> list[str]:
        if self._listed:
            return ["-i", str(self._listed)]
        return ["-i", str(TOP / "inventory" / "local"), *self.extra]

    def clock(self, host: Host) -> Path:
        """A module that Python reads as it starts (site(1)) is put on the host, once."""
        place = host.root / "usr/local/lib/python3.11/dist-packages/usercustomize.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text((CLOCK / "sitecustomize.py").read_text())
        return host.root / "run/connlab-clock"

    def heal(self, host: Host) -> None:
        host.mend()
        if host.init() is None:
            self.play("create", "tune")
