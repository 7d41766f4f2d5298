import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tune_loader import load

load("lab_common", "module_utils", "connlab_record")
load("lab_common", "module_utils", "connlab_sysctl_tree")
ips = load("lab_common", "module_utils", "connlab_ip")
nft_module = load("nat_router", "module_utils", "connlab_nft")
files = load("nat_router", "module_utils", "connlab_nat_files")
parts = load("nat_router", "module_utils", "connlab_nat_parts")
nat = load("nat_router", "library", "connlab_nat")

TRANSLATION = {
    **{"interface": "data0", "destinations": ["198.19.0.0/16"]},
    **{"addresses": ["198.18.201.1"], "ports": [1024, 65535]},
}
SYSCTLS = {"net.ipv4.ip_forward": "1", "net.ipv4.conf.data0.send_redirects": "0"}
SMALL = {"net.ipv4.ip_forward": "0", "net.ipv4.conf.data0.send_redirects": "1"}
TREE = {
    **SMALL,
    "net.ipv4.conf.all.accept_redirects": "1",
    "net.ipv4.conf.all.forwarding": "0",
    "net.ipv4.conf.data0.forwarding": "0",
    "net.netfilter.nf_conntrack_max": "65536",
    "net.netfilter.nf_conntrack_tcp_timeout_established": "432000",
}


class Kernel:
    """A /proc/sys in which ip_forward takes along what inet_forward_change() takes along."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.write = parts.write_key
        for key, value in TREE.items():
            path = root / key.replace(".", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(value)
        monkeypatch.setattr(parts, "ROOT", root)
        monkeypatch.setattr(parts, "write_key", self.set)
        tree = load("lab_common", "module_utils", "connlab_sysctl_tree")
        monkeypatch.setattr(tree, "write_key", self.set)

    def set(self, key: str, value: str, root: Path) -> None:
        if key == "net.ipv4.ip_forward" and value != self.values()[key]:
            self.write("net.ipv4.conf.all.accept_redirects", "10"[int(value)], root)
            for name in ("all", "data0"):
                self.write(f"net.ipv4.conf.{name}.forwarding", value, root)
        self.write(key, value, root)

    def values(self) -> dict[str, str]:
        return {key: (self.root / key.replace(".", "/")).read_text().strip() for key in TREE}


class Nft:
    """nft(8) with one table in memory."""

    path = "/usr/sbin/nft"

    def __init__(self) -> None:
        self.table: Any = None
        self.loads = 0

    def has_table(self) -> bool:
        return self.table is not None

    def translation(self) -> Any:
        return self.table

    def load(self, text: str) -> None:
        wanted = [TRANSLATION, {**TRANSLATION, "ports": [5000, 5009]}]
        self.table = next(each for each in wanted if nft_module.ruleset(each) == text)
        self.loads += 1

    def delete(self) -> None:
        self.table = None


class Ip:
    """ip(8) with the main table in memory."""

    def __init__(self) -> None:
        self.have = {"198.18.0.0/15": ("", "data0")}

    def prefixes(self) -> dict[str, tuple[str, str]]:
        return dict(self.have)

    def batch(self, commands: Any) -> None:
        for command in commands:
            _, verb, to, *rest = command.split()
            if verb == "del":
                del self.have[to]
            else:
                self.have[to] = (rest[1], rest[3])


class Host:
    """The tools of a host, and which services are enabled."""

    def __init__(self) -> None:
        self.ip, self.tool, self.enabled = Ip(), Nft(), set()  # type: ignore[var-annotated]

    def nft(self) -> Nft:
        return self.tool

    def systemctl(self, *words: str) -> bool:
        if words[0] == "enable":
            self.enabled.add(words[-1])
        if words[0] == "disable":
            self.enabled.discard(words[-1])
        return words[0] != "is-enabled" or words[-1] in self.enabled


class Module:
    """The part of AnsibleModule that the functions use."""

    def __init__(self, directory: Path, check_mode: bool = False, **params: Any) -> None:
        self.check_mode = check_mode
        self.params = {
            **{"lab_name": "x", "interface": "data0", "translation": {}, "sysctls": {}},
            **{"conntrack": 1, "routes": {}, "record": str(directory / "nat_router.json")},
            **params,
        }


ROUTER = {"translation": TRANSLATION, "sysctls": SYSCTLS}
CLIENT = {"routes": {"198.19.0.0/16": "198.18.201.1"}}


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """The kernel, and an /etc below the test's directory."""

    def below(texts: Any) -> Any:
        return texts and {f"{tmp_path}{path}": text for path, text in texts.items()}

    for name in ("router_files", "route_files"):
        found = getattr(files, name)
        monkeypatch.setattr(nat, name, lambda *words, found=found: below(found(*words)))
    monkeypatch.setattr(ips, "network_files", lambda _: [Path("/run/10-data0.network")])
    return Kernel(tmp_path / "proc", monkeypatch)


def everything(directory: Path) -> dict[str, str]:
    """Return all files' texts."""
    return {str(path): path.read_text() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("given", [ROUTER, CLIENT])
def test_a_revert_leaves_what_was_found_and_twice_is_fine(
    tmp_path: Path, kernel: Kernel, given: Any
) -> None:
    host, before, found = Host(), everything(tmp_path), kernel.values()
    assert nat.present(Module(tmp_path, **given), host)["changed"]
    assert (host.tool.table == TRANSLATION) is (given is ROUTER)
    assert ("198.19.0.0/16" in host.ip.have) is (given is CLIENT)
    assert nat.absent(Module(tmp_path), host)["changed"]
    assert everything(tmp_path) == before
    assert kernel.values() == found
    assert (host.tool.table, host.ip.have, host.enabled) == (None, Ip().have, set())
    assert not nat.absent(Module(tmp_path), host)["changed"]


def test_a_lab_of_another_name_takes_away_the_service_of_the_old_one(
    tmp_path: Path, kernel: Kernel
) -> None:
    host, before = Host(), everything(tmp_path)
    nat.present(Module(tmp_path, **ROUTER), host)
    assert nat.present(Module(tmp_path, lab_name="y", **ROUTER), host)["changed"]
    assert (host.enabled, host.tool.table) == ({"y-nat.service"}, TRANSLATION)
    assert not nat.present(Module(tmp_path, lab_name="y", **ROUTER), host)["changed"]
    nat.absent(Module(tmp_path, lab_name="z"), host)
    assert (host.enabled, everything(tmp_path)) == (set(), before)


def test_a_router_that_becomes_a_client_translates_no_more(tmp_path: Path, kernel: Kernel) -> None:
    host, found = Host(), kernel.values()
    nat.present(Module(tmp_path, **ROUTER), host)
    shown = nat.present(Module(tmp_path, check_mode=True, **CLIENT), host)["diff"]
    assert "198.18.201.1" in "".join(entry["before"] for entry in shown)
    assert host.tool.table == TRANSLATION
    assert nat.present(Module(tmp_path, **CLIENT), host)["changed"]
    assert (host.tool.table, host.enabled, kernel.values()) == (None, set(), found)
    assert not nat.present(Module(tmp_path, **CLIENT), host)["changed"]
    host.tool.table = "else"
    with pytest.raises(ValueError, match="connlab_nat: found one that is not the lab's"):
        nat.present(Module(tmp_path, **ROUTER), host)


@pytest.mark.parametrize("given", [ROUTER, CLIENT])
def test_a_second_run_changes_nothing(tmp_path: Path, kernel: Kernel, given: Any) -> None:
    host = Host()
    nat.present(Module(tmp_path, **given), host)
    before = everything(tmp_path)
    again = nat.present(Module(tmp_path, **given), host)
    assert (again["changed"], again["diff"]) == (False, [])
    assert everything(tmp_path) == before
    assert host.tool.loads == (given is ROUTER)


@pytest.mark.parametrize("given", [ROUTER, CLIENT])
def test_check_mode_changes_nothing_and_shows_it(
    tmp_path: Path, kernel: Kernel, given: Any
) -> None:
    host, before = Host(), everything(tmp_path)
    result = nat.present(Module(tmp_path, check_mode=True, **given), host)
    assert result["changed"]
    assert "198.18.201.1" in "".join(entry["after"] for entry in result["diff"])
    assert everything(tmp_path) == before
    assert (host.tool.table, host.ip.have, host.enabled) == (None, Ip().have, set())


def test_what_ip_forward_takes_along_is_put_back_too(tmp_path: Path, kernel: Kernel) -> None:
    kernel.set("net.ipv4.conf.all.accept_redirects", "0", kernel.root)
    kernel.set("net.ipv4.conf.data0.forwarding", "1", kernel.root)
    host, found = Host(), kernel.values()
    nat.present(Module(tmp_path, **ROUTER), host)
    # Read again, keys come in the order of the alphabet: ip_forward last.
    nat.absent(Module(tmp_path), host)
    assert kernel.values() == found


def test_a_parameter_that_is_refused_leaves_all_of_them_as_found(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.set("net.ipv4.conf.all.accept_redirects", "0", kernel.root)
    kernel.set("net.ipv4.conf.data0.forwarding", "1", kernel.root)
    found = kernel.values()

    def refuse(key: str, value: str, root: Path) -> None:
        if key.endswith("send_redirects"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        kernel.set(key, value, root)

    monkeypatch.setattr(parts, "write_key", refuse)
    match = r"send_redirects: wanted 0, found 1 \(Permission denied\); everything was undone"
    with pytest.raises(nat.SysctlError, match=match):
        nat.present(Module(tmp_path, **ROUTER), Host())
    assert kernel.values() == found


def test_a_parameter_that_is_not_asked_for_any_more_goes_back(
    tmp_path: Path, kernel: Kernel
) -> None:
    host, key = Host(), "net.netfilter.nf_conntrack_tcp_timeout_established"
    more = {"translation": TRANSLATION, "sysctls": {**SYSCTLS, key: "600"}}
    nat.present(Module(tmp_path, **more), host)
    assert kernel.values()[key] == "600"
    assert nat.present(Module(tmp_path, **ROUTER), host)["changed"]
    assert kernel.values()[key] == TREE[key]
    assert not nat.present(Module(tmp_path, **ROUTER), host)["changed"]


def test_other_ports_replace_the_table(tmp_path: Path, kernel: Kernel) -> None:
    host = Host()
    nat.present(Module(tmp_path, **ROUTER), host)
    other = {**TRANSLATION, "ports": [5000, 5009]}
    assert nat.present(Module(tmp_path, **{**ROUTER, "translation": other}), host)["changed"]
    assert host.tool.table == other


def test_a_table_that_went_missing_is_loaded_again(tmp_path: Path, kernel: Kernel) -> None:
    host = Host()
    nat.present(Module(tmp_path, **ROUTER), host)
    host.tool.delete()
    assert nat.present(Module(tmp_path, **ROUTER), host)["changed"]
    assert host.tool.table == TRANSLATION


def test_a_table_of_somebody_else_is_refused(tmp_path: Path, kernel: Kernel) -> None:
    host, before = Host(), everything(tmp_path)
    host.tool.table = "else"
    with pytest.raises(ValueError, match="connlab_nat: found one that is not the lab's"):
        nat.present(Module(tmp_path, **ROUTER), host)
    assert everything(tmp_path) == before


def test_a_table_that_is_not_what_was_loaded_is_an_error(tmp_path: Path, kernel: Kernel) -> None:
    host = Host()
    host.tool.load = lambda _: None  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"table inet connlab_nat: wanted .* found None"):
        nat.present(Module(tmp_path, **ROUTER), host)


def test_a_route_of_somebody_else_is_refused(tmp_path: Path, kernel: Kernel) -> None:
    host, before = Host(), everything(tmp_path)
    host.ip.have["198.19.0.0/16"] = ("198.18.0.77", "data0")
    with pytest.raises(ValueError, match=r"198\.19\.0\.0/16: wanted 198\.18\.201\.1, found 198"):
        nat.present(Module(tmp_path, **CLIENT), host)
    assert everything(tmp_path) == before
    assert host.ip.have["198.19.0.0/16"] == ("198.18.0.77", "data0")


def test_another_router_moves_the_route(tmp_path: Path, kernel: Kernel) -> None:
    host = Host()
    nat.present(Module(tmp_path, **CLIENT), host)
    moved = {"198.19.0.0/16": "198.18.202.1"}
    assert nat.present(Module(tmp_path, routes=moved), host)["changed"]
    assert host.ip.have["198.19.0.0/16"] == ("198.18.202.1", "data0")
    assert nat.present(Module(tmp_path, routes={}), host)["changed"]
    assert host.ip.have == Ip().have


def test_a_table_too_small_is_reported_and_recorded(tmp_path: Path, kernel: Kernel) -> None:
    result = nat.present(Module(tmp_path, conntrack=65_537, **ROUTER), Host())
    key = "net.netfilter.nf_conntrack_max"
    assert result["reported"][key].startswith("wanted 65537, found 65536")
    assert json.loads((tmp_path / "nat_router.json").read_text())["reported"] == result["reported"]
    enough = nat.present(Module(tmp_path, conntrack=65_536, **ROUTER), Host())
    assert enough["reported"] == {}


def test_without_networkd_the_route_is_set_and_the_shortfall_reported(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ips, "network_files", lambda _: [])
    host = Host()
    result = nat.present(Module(tmp_path, **CLIENT), host)
    assert "end with this boot" in result["reported"]["persistence"]
    assert host.ip.have["198.19.0.0/16"] == ("198.18.201.1", "data0")


def test_a_boot_loads_the_table_after_whatever_empties_the_ruleset() -> None:
    text = files.unit("x", "/usr/sbin/nft", "/etc/nftables.d/90-x.nft")
    assert "After=nftables.service\n" in text
    assert "ExecStart=/usr/sbin/nft -f /etc/nftables.d/90-x.nft\n" in text
