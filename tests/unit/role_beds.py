"""Hosts in memory and below a directory, for role modules that are interrupted at any write."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tune_loader import load

record_module = load("lab_common", "module_utils", "connlab_record")
tree = load("lab_common", "module_utils", "connlab_sysctl_tree")
ips = load("lab_common", "module_utils", "connlab_ip")
nft_module = load("nat_router", "module_utils", "connlab_nft")
nat_files = load("nat_router", "module_utils", "connlab_nat_files")
nat_parts = load("nat_router", "module_utils", "connlab_nat_parts")
load("reverse_proxy", "module_utils", "connlab_proxy_processes")
load("reverse_proxy", "module_utils", "connlab_proxy_host")
policy = load("reverse_proxy", "module_utils", "connlab_policy_routes")
sysctl = load("tune_sysctl", "library", "connlab_sysctl")
limits = load("tune_limits", "library", "connlab_limits")
alias = load("alias_ips", "library", "connlab_alias")
nat = load("nat_router", "library", "connlab_nat")
proxy = load("reverse_proxy", "library", "connlab_proxy")
proxy_routes = load("reverse_proxy", "library", "connlab_proxy_routes")

MOST_WRITES = 80


class Killed(BaseException):
    """What SIGKILL is to a process: nothing that catches errors gets to run."""


class Fuse:
    """Raises Killed in place of the write of a number."""

    def __init__(self) -> None:
        self.at = 0
        self.count = 0

    def step(self) -> None:
        self.count += 1
        if self.count == self.at:
            raise Killed

    @contextlib.contextmanager
    def blowing(self, at: int) -> Iterator[list[bool]]:
        """Kill what runs in the block at its write of this number; [True] where it did."""
        blown = [False]
        self.at, self.count = at, 0
        try:
            yield blown
        except Killed:
            blown[0] = True
        finally:
            self.at = 0


class Module:
    """The part of AnsibleModule that the modules' functions use."""

    check_mode = False

    def __init__(self, **params: Any) -> None:
        self.params = params

    def get_bin_path(self, name: str, **_: Any) -> str:
        return name

    def run_command(self, words: list[str], **_: Any) -> tuple[int, str, str]:
        raise AssertionError(words)


class Bed:
    """A host of a role: `tune` and `revert` run its module, `state` is all that it may change."""

    def __init__(self, top: Path, fuse: Fuse) -> None:
        self.top, self.fuse = top, fuse
        self.record = top / "var" / "state.json"
        (top / "etc").mkdir(parents=True)

    def tune(self, number: int = 1) -> dict[str, Any]:
        """Run the role; another number asks for other values."""
        raise NotImplementedError

    def revert(self) -> dict[str, Any]:
        raise NotImplementedError

    def tune_first(self) -> None:
        self.tune(1)

    def memory(self) -> Any:
        """Return what is not in files."""
        return None

    def state(self) -> Any:
        paths = [path for path in self.top.rglob("*") if self.record.parent not in path.parents]
        texts = {str(path.relative_to(self.top)): path for path in paths}
        return (
            {name: path.read_text() if path.is_file() else "" for name, path in texts.items()},
            self.memory(),
        )


class SysctlBed(Bed):
    """Kernel parameters with a file of sysctl.d."""

    KEYS: ClassVar = {
        "net.core.somaxconn": "4096",
        "net.ipv4.tcp_mem": "1 2 3",
        "fs.nr_open": "1000",
    }
    path: str | None = "etc/90-x.conf"

    def __init__(self, top: Path, fuse: Fuse) -> None:
        super().__init__(top, fuse)
        for key, value in self.KEYS.items():
            path = tree.key_path(key, top / "proc")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(value)

    def set(self, key: str, value: str) -> None:
        tree.key_path(key, self.top / "proc").write_text(value)

    def get(self, key: str) -> str:
        return str(tree.key_path(key, self.top / "proc").read_text())

    def module(self, **params: Any) -> Module:
        sysctl.ROOT = self.top / "proc"
        sysctl.LIMITS = self.top / "etc" / "limits.conf"
        return Module(peers="", record=str(self.record), **params)

    def tune(self, number: int = 1) -> dict[str, Any]:
        values = {"net.core.somaxconn": f"{number}0000", "net.ipv4.tcp_mem": f"4 5 {number}6"}
        settings = [{"key": key, "value": value, "wanted": value} for key, value in values.items()]
        content = "".join(f"{key} = {value}\n" for key, value in values.items())
        module = self.module(
            **{"settings": settings, "content": content, "where": "host"},
            **{"path": str(self.top / self.path) if self.path else ""},
            **{"observed": {}, "reported": {}},
        )

        def run_sysctl(*_: Any) -> str:
            for key, value in values.items():
                self.fuse.step()
                self.set(key, value)
            return ""

        sysctl.run_sysctl = run_sysctl
        return dict(sysctl.present(module))

    def revert(self) -> dict[str, Any]:
        return dict(sysctl.absent(self.module()))


class LimitsBed(Bed):
    """Files of limits.d and of systemd, one of which was there before."""

    def __init__(self, top: Path, fuse: Fuse) -> None:
        super().__init__(top, fuse)
        (top / "etc" / "90-x.conf").write_text("by hand\n")

    def tune(self, number: int = 1) -> dict[str, Any]:
        texts = {"etc/90-x.conf": f"nofile {number}\n", "etc/service.d/90-x.conf": f"N={number}\n"}
        if number == 1:
            texts["etc/only-at-first/90-x.conf"] = "first\n"
        files = {str(self.top / path): text for path, text in texts.items()}
        figures = {"nofile": 1000, "wanted": 1000, "nr_open": 0, "found": {"hard": "1"}}
        module = Module(record=str(self.record), files=files, reported={}, **figures)
        return dict(limits.present(module))

    def revert(self) -> dict[str, Any]:
        return dict(limits.absent(Module(record=str(self.record))))


class MemoryIp:
    """ip(8) in memory, killed between two commands of a batch like any other write."""

    def __init__(self, fuse: Fuse) -> None:
        self.fuse = fuse
        self.have = {"198.18.1.1": "198.18.1.1/15"}
        self.local: dict[str, list[str]] = {}
        self.main = {"198.18.0.0/15": ("", "data0")}

    def json(self, *_: str) -> list[dict[str, Any]]:
        return [{"ifname": "data0"}]

    def addresses(self, _: str) -> dict[str, str]:
        return dict(self.have)

    def routes(self) -> dict[str, list[str]]:
        return {prefix: list(devices) for prefix, devices in self.local.items() if devices}

    def prefixes(self) -> dict[str, tuple[str, str]]:
        return dict(self.main)

    def batch(self, commands: Any) -> None:
        for command in commands:
            self.fuse.step()
            words = command.split()
            if words[0] == "address" and words[1] == "add":
                self.have[words[2].split("/")[0]] = words[2]
            elif words[0] == "address":
                del self.have[words[2].split("/")[0]]
            elif words[2] == "local":
                devices = self.local.setdefault(words[3], [])
                (devices.append if words[1] == "add" else devices.remove)(words[5])
            elif words[1] == "del":
                del self.main[words[2]]
            else:
                self.main[words[2]] = (words[4], words[6])


class AliasBed(Bed):
    """Aliases, a local route and a drop-in."""

    def __init__(self, top: Path, fuse: Fuse) -> None:
        super().__init__(top, fuse)
        self.ip = MemoryIp(fuse)

    def tune(self, number: int = 1) -> dict[str, Any]:
        ips.NETWORK = str(self.top / "etc")
        module = Module(
            **{"interface": "data0", "lab_name": "x", "record": str(self.record)},
            addresses=["198.18.1.1", *(f"198.18.{number}.{byte}" for byte in (2, 3))],
            routes=["198.19.0.0/16"] if number == 1 else [],
        )
        return dict(alias.present(module, self.ip))

    def revert(self) -> dict[str, Any]:
        return dict(alias.absent(Module(record=str(self.record)), self.ip))

    def memory(self) -> Any:
        return self.ip.addresses(""), self.ip.routes()


class MemoryNft:
    """nft(8) with one table in memory."""

    path = "/usr/sbin/nft"

    def __init__(self, fuse: Fuse) -> None:
        self.fuse, self.table = fuse, None

    def has_table(self) -> bool:
        return self.table is not None

    def translation(self) -> Any:
        return self.table

    def load(self, text: str) -> None:
        self.fuse.step()
        self.table = next(
            each for number in (1, 2) if nft_module.ruleset(each := translation(number)) == text
        )

    def delete(self) -> None:
        self.fuse.step()
        self.table = None


def translation(number: int) -> Any:
    """Return what a router translates."""
    return {
        **{"interface": "data0", "destinations": ["198.19.0.0/16"]},
        **{"addresses": ["198.18.201.1"], "ports": [1024, 5000 + number]},
    }


class NatBed(Bed):
    """A router, or with number 3 a host that has been one."""

    KEYS: ClassVar = {
        **{"net.ipv4.ip_forward": "0", "net.ipv4.conf.data0.send_redirects": "1"},
        **{"net.ipv4.conf.all.accept_redirects": "1", "net.ipv4.conf.data0.forwarding": "1"},
    }

    def __init__(self, top: Path, fuse: Fuse) -> None:
        super().__init__(top, fuse)
        self.ip, self.tool = MemoryIp(fuse), MemoryNft(fuse)
        self.enabled: set[str] = set()
        for key, value in self.KEYS.items():
            path = tree.key_path(key, top / "proc")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(value)

    def nft(self) -> MemoryNft:
        return self.tool

    def systemctl(self, *words: str) -> bool:
        if words[0] in ("enable", "disable"):
            self.fuse.step()
            (self.enabled.add if words[0] == "enable" else self.enabled.discard)(words[-1])
        return words[0] != "is-enabled" or words[-1] in self.enabled

    def given(self, number: int) -> dict[str, Any]:
        if number == 3:
            return {"translation": {}, "sysctls": {}, "routes": {}}
        keys = {"net.ipv4.ip_forward": "1", "net.ipv4.conf.data0.send_redirects": "0"}
        return {"translation": translation(number), "sysctls": keys, "routes": {}}

    def run(self, act: Any, **params: Any) -> dict[str, Any]:
        nat_parts.ROOT = self.top / "proc"
        etc = str(self.top / "etc")
        nat.router_files = lambda *words: {
            f"{etc}/{Path(path).name}": text
            for path, text in nat_files.router_files(*words).items()
        }
        ips.NETWORK = etc
        module = Module(
            **{"lab_name": "x", "interface": "data0", "conntrack": 1},
            **{"record": str(self.record), **params},
        )
        return dict(act(module, self))

    def tune(self, number: int = 1) -> dict[str, Any]:
        return self.run(nat.present, **self.given(number))

    def revert(self) -> dict[str, Any]:
        return self.run(nat.absent)

    def memory(self) -> Any:
        return self.tool.table, set(self.enabled), self.ip.prefixes()


class ClientBed(NatBed):
    """A client of a router; with another number, of another router."""

    def given(self, number: int) -> dict[str, Any]:
        routes = {"198.19.0.0/16": f"198.18.20{number}.1"}
        if number == 1:
            routes["198.19.7.0/24"] = "198.18.201.1"
        return {"translation": {}, "sysctls": {}, "routes": routes}


class ProxyBed(Bed):
    """HAProxy's processes, which systemd keeps in memory."""

    def __init__(self, top: Path, fuse: Fuse) -> None:
        super().__init__(top, fuse)
        self.units: dict[str, bool] = {}

    def run(self, words: list[str]) -> tuple[int, str, str]:
        names = [word for word in words if "@" in word]
        if words[1] == "list-units":
            states = {True: "active running", False: "inactive dead"}
            lines = [f"{name} loaded {states[up]}" for name, up in self.units.items()]
            return 0, "\n".join(lines), ""
        if words[1] in ("enable", "disable", "restart", "start"):
            for name in names:
                self.fuse.step()
                if words[1] == "disable":
                    del self.units[name]
                else:
                    self.units[name] = words[1] != "enable" or self.units.get(name, False)
        return 0, "", ""

    def tune(self, number: int = 1) -> dict[str, Any]:
        module = Module(
            **{"config": str(self.top / "etc" / "proxy.cfg"), "text": f"config {number}\n"},
            **{"units": {str(self.top / "etc" / "unit@.service"): f"unit {number}\n"}},
            **{"unit": "x-proxy", "runtime": "x-proxy", "processes": number + 1, "maxconn": 10},
            **{"endpoints": [], "reported": {}, "record": str(self.record)},
        )
        proxy.RUNTIME = self.top / "run"
        proxy.read_back = lambda *_: None
        proxy.check_config = lambda *_: None
        proxy.HAPROXY = "/bin/sh"
        return dict(proxy.present(module, self.run))

    def revert(self) -> dict[str, Any]:
        proxy.RUNTIME = self.top / "run"
        return dict(proxy.absent(Module(record=str(self.record)), self.run))

    def memory(self) -> Any:
        return dict(self.units)


class PolicyIp:
    """Rules and routes in memory, in the words that ip(8) takes."""

    def __init__(self, fuse: Fuse) -> None:
        self.fuse = fuse
        self.rules: list[str] = []
        self.routes: list[str] = []

    def batch(self, commands: Any) -> None:
        for command in commands:
            self.fuse.step()
            kind, verb, text = command.split(" ", 2)
            text = text.partition(" proto")[0]
            there = self.rules if kind == "rule" else self.routes
            (there.append if verb == "add" else there.remove)(text)


class PolicyBed(Bed):
    """The way back of transparent connections."""

    def __init__(self, top: Path, fuse: Fuse) -> None:
        super().__init__(top, fuse)
        self.ip = PolicyIp(fuse)

    def tune(self, number: int = 1) -> dict[str, Any]:
        ips.NETWORK = str(self.top / "etc")
        proxy_routes.find = self.find
        proxy_routes.misrouted = lambda *_: []
        table = 5000 + number
        rule = {"priority": table, "table": table, "from": "198.18.0.1", "sport": 1, "iif": ""}
        module = Module(
            rules=[rule],
            routes=[{"table": table, "via": "198.18.211.1", "dev": "data0"}],
            **{"peers": [], "lab_name": "x", "record": str(self.record)},
        )
        return dict(proxy_routes.present(module, self.ip))

    def find(self, _: Any, keys: Any) -> tuple[list[str], list[str]]:
        tables = {str(table) for _, table in keys}
        return (
            [each for each in self.ip.rules if each.split()[-1] in tables],
            [each for each in self.ip.routes if each.split()[-1] in tables],
        )

    def revert(self) -> dict[str, Any]:
        proxy_routes.find = self.find
        return dict(proxy_routes.absent(Module(record=str(self.record)), self.ip))

    def memory(self) -> Any:
        return list(self.ip.rules), list(self.ip.routes)


BEDS: dict[str, type[Bed]] = {
    "sysctl": SysctlBed,
    "limits": LimitsBed,
    "alias": AliasBed,
    "router": NatBed,
    "client": ClientBed,
    "proxy": ProxyBed,
    "policy": PolicyBed,
}


def install(monkeypatch: pytest.MonkeyPatch, fuse: Fuse) -> None:
    """Have every write go through the fuse, and what beds replace put back after the test."""

    def fused(write: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*words: Any, **options: Any) -> Any:
            fuse.step()
            return write(*words, **options)

        return stepped

    monkeypatch.setattr(record_module, "write_text", fused(record_module.write_text))
    monkeypatch.setattr(record_module, "remove_record", fused(record_module.remove_record))
    monkeypatch.setattr(sysctl, "write_text", record_module.write_text)

    def write_key(key: str, value: str, root: Path) -> None:
        """As the kernel: ip_forward takes others along (inet_forward_change())."""
        if key == "net.ipv4.ip_forward" and tree.read_key(key, root) != value:
            others = {"all.accept_redirects": "10"[int(value)], "data0.forwarding": value}
            for name, also in others.items():
                tree.key_path(f"net.ipv4.conf.{name}", root).write_text(also)
        tree.key_path(key, root).write_text(value)

    monkeypatch.setattr(nat_parts, "write_key", fused(write_key))
    monkeypatch.setattr(tree, "write_key", fused(write_key))
    monkeypatch.setattr("os.fsync", lambda _: None)  # most of the time otherwise
    monkeypatch.setattr(ips, "network_files", lambda _: [Path("/run/10-data0.network")])
    for owner, name in (
        *((sysctl, name) for name in ("ROOT", "LIMITS", "run_sysctl")),
        *((proxy, name) for name in ("RUNTIME", "read_back", "check_config", "HAPROXY")),
        *((proxy_routes, name) for name in ("find", "misrouted")),
        *((nat_parts, "ROOT"), (nat, "router_files"), (ips, "NETWORK")),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
