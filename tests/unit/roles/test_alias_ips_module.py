from pathlib import Path
from typing import Any

import pytest
from tune_loader import load

load("lab_common", "module_utils", "connlab_record")
ips = load("lab_common", "module_utils", "connlab_ip")
alias_module = load("alias_ips", "library", "connlab_alias")


class Module:
    """The part of AnsibleModule that the functions use."""

    def __init__(self, check_mode: bool = False, **params: Any) -> None:
        self.check_mode = check_mode
        self.params = {"interface": "data0", "routes": [], "lab_name": "connlab", **params}


class Ip:
    """ip(8) with one interface in memory; refuses what the kernel would refuse."""

    def __init__(self, *addresses: str) -> None:
        self.have = {address.split("/")[0]: address for address in addresses}
        self.local: dict[str, list[str]] = {}
        self.ran: list[str] = []

    def json(self, *_: str) -> list[dict[str, Any]]:
        return [{"ifname": "data0"}]

    def addresses(self, _: str) -> dict[str, str]:
        return dict(self.have)

    def routes(self) -> dict[str, list[str]]:
        return {prefix: list(devices) for prefix, devices in self.local.items() if devices}

    def batch(self, commands: list[str]) -> None:
        for command in commands:
            self.ran.append(command)
            kind, verb, value = command.split()[:3]
            if kind == "route":
                prefix, device = command.split()[3::2]
                devices = self.local.setdefault(prefix, [])
                (devices.append if verb == "add" else devices.remove)(device)
            elif verb == "add":
                assert value.split("/")[0] not in self.have
                self.have[value.split("/")[0]] = value
            else:
                del self.have[value.split("/")[0]]


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(ips, "network_files", lambda _: [])
    return str(tmp_path / "alias_ips.json")


def test_adds_what_is_missing_in_one_batch_and_nothing_twice(record: str) -> None:
    ip = Ip("198.18.1.1/15")
    module = Module(addresses=["198.18.1.1", "198.18.1.2", "fd63::2"], record=record)
    assert alias_module.present(module, ip)["changed"]
    assert ip.ran == [
        "address add 198.18.1.2/32 dev data0",
        "address add fd63::2/128 dev data0 nodad",
    ]
    again = alias_module.present(module, ip)
    assert (again["changed"], again["diff"]) == (False, [])
    assert "end with this boot" in again["reported"]["persistence"]


def test_fewer_aliases_take_away_only_what_the_role_added(record: str) -> None:
    ip = Ip("198.18.1.1/15", "198.18.1.77/32")
    many = [f"198.18.1.{byte}" for byte in range(1, 5)]
    alias_module.present(Module(addresses=many, record=record), ip)
    alias_module.present(Module(addresses=many[:2], record=record), ip)
    assert set(ip.have) == {"198.18.1.1", "198.18.1.77", "198.18.1.2"}


def test_revert_leaves_what_was_found_and_twice_is_fine(record: str) -> None:
    ip = Ip("198.18.1.1/15", "198.18.1.3/32")
    addresses = [f"198.18.1.{byte}" for byte in range(1, 5)]
    alias_module.present(Module(addresses=addresses, routes=["198.19.0.0/16"], record=record), ip)
    ip.local["198.19.0.0/16"].append("data0")  # a boot has brought it back there as well
    assert alias_module.absent(Module(record=record), ip)["changed"]
    assert set(ip.have) == {"198.18.1.1", "198.18.1.3"}
    assert ip.routes() == {}
    assert not alias_module.absent(Module(record=record), ip)["changed"]


def test_check_mode_changes_nothing_and_shows_it(record: str) -> None:
    ip = Ip("198.18.1.1/15")
    module = Module(True, addresses=["198.18.1.1", "198.18.1.2"], record=record)
    result = alias_module.present(module, ip)
    assert result["changed"]
    assert "198.18.1.2/32" in result["diff"][-1]["after"]
    assert ip.ran == []
    assert not Path(record).exists()


def test_an_address_that_does_not_appear_is_an_error(record: str) -> None:
    ip = Ip("198.18.1.1/15")
    ip.batch = lambda _: None  # type: ignore[method-assign, assignment]
    with pytest.raises(ValueError, match=r"data0: wanted 198\.18\.1\.2, found 198\.18\.1\.1"):
        alias_module.present(Module(addresses=["198.18.1.2"], record=record), ip)


def test_another_interface_needs_a_revert_first(record: str) -> None:
    alias_module.present(Module(addresses=["198.18.1.2"], record=record), Ip())
    with pytest.raises(ValueError, match="wanted other0, found aliases on data0"):
        alias_module.present(Module(addresses=[], interface="other0", record=record), Ip())


def test_the_drop_in_has_a_section_for_each_alias_and_route() -> None:
    text = alias_module.dropin("x", "data0", ["198.18.1.2", "fd63::2"], ["198.19.0.0/16"])
    sections = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert sections == [
        "[Address]",
        "Address=198.18.1.2/32",
        "[Address]",
        "Address=fd63::2/128",
        "DuplicateAddressDetection=none",
        "[Route]",
        "Destination=198.19.0.0/16",
        "Type=local",
        "Table=local",
        "Scope=host",
    ]
