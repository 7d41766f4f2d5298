"""``count``: what is asked of which hosts, what is shown, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_links import HELLO, FakeLink, links
from typer.testing import CliRunner, Result

from bench import inventory, wire
from bench.cli import app
from bench.errors import InputError
from bench.hosts import count, transport
from bench.inventory import Host, Inventory

GROUPS = {
    "server1": ("servers",),
    "server2": ("servers",),
    "client1": ("clients",),
    "proxy1": ("proxies",),
}


def listed() -> Inventory:
    hosts = {
        name: Host(name, groups, name, 22, "lab", None, None, ("198.18.0.1",))
        for name, groups in GROUPS.items()
    }
    return Inventory("inventory/test", "vm", hosts, False, None, None)


class Lab:
    """Hosts that answer with counts."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.error: dict[str, Any] = {}
        self.asked: list[dict[str, Any]] = []
        self.made: list[FakeLink] = []
        self.reached: list[str] = []
        self.link: Callable[[Host], FakeLink]
        self.made, self.link = links(self.react)

    def connect(self, host: Host) -> FakeLink:
        self.reached.append(host.name)
        return self.link(host)

    def react(self, message: dict[str, Any]) -> Sequence[Any]:
        if message["op"] == "":
            return [HELLO]
        if message["op"] != "count":
            return []
        self.asked.append(message)
        counts = {} if message["by"] == "none" else self.counts
        total = sum(self.counts.values())
        told = {"event": "counted", "counts": counts, "total": total, "seconds": 0.25}
        return [self.error or told]

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(app, ["count", *words])


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab()
    monkeypatch.setattr(inventory, "load", lambda *_: listed())
    monkeypatch.setattr(transport, "connect", made.connect)
    return made


def cells(done: Result) -> list[list[str]]:
    """Words of the table's rows."""
    lines = [line.split() for line in done.output.splitlines() if line.strip()]
    return [line for line in lines if line[0] in GROUPS]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("5000", [(5000, 5000)]),
        ("1-65535", [(1, 65535)]),
        ("80,22, 8000 - 8099", [(22, 22), (80, 80), (8000, 8099)]),
        ("1-5,3-9,10,12", [(1, 10), (12, 12)]),
        ("1-9,2-3", [(1, 9)]),
    ],
)
def test_ranges_as_typed(text: str, found: list[tuple[int, int]]) -> None:
    assert count.ranges(text) == found


@pytest.mark.parametrize("text", ["0", "0-5", "65536", "1-65536", "5-4", "", "x", "1-2-3"])
def test_what_is_no_range_of_ports(text: str) -> None:
    with pytest.raises(InputError, match=r"^--ports: got '.*', expected a port or a range"):
        count.ranges(text)


def test_the_first_and_the_last_port_are_ports() -> None:
    assert count.ranges("65535,1,2") == [(1, 2), (65_535, 65_535)]
    assert count.ranges("1-65535") == [(1, 65_535)]


def test_more_ranges_than_a_kernel_is_asked_for() -> None:
    with pytest.raises(InputError, match=r"--ports: got 257 ranges apart .* at most 256"):
        count.ranges(",".join(str(port) for port in range(1, 515, 2)))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--ports", "0-70000"], "--ports: got '0-70000', expected a port or a range"),
        (["--ports", "9-1"], "--ports: got '9-1', expected"),
        (["--ports", "80,"], "--ports: got '', expected"),
        (["--ports", "http"], "--ports: got 'http', expected"),
        (["--ports", "-5"], "--ports: got '-5', expected"),
        (["--hosts", "sever1"], "--hosts: got 'sever1', expected server1"),
        (["--hosts", "routers"], "--hosts: got 'routers', expected servers"),
        (["--hosts", "zzz"], "got 'zzz', expected servers, clients, proxies, server1, server2"),
        (["--state", "listening"], "--state: got 'listening', expected established, syn-sent"),
        (["--state", ""], "--state: got '', expected established"),
        (["--top", "0"], "--top: got '0', expected at least 1"),
        (["--top", "all"], "--top: got 'all', expected a whole number"),
        (["--by", "host"], "'--by': 'host' is not one of 'none', 'port', 'state', 'peer'"),
        (["--side", "both"], "'--side': 'both' is not one of 'local', 'peer'"),
        (["--bye", "port"], "No such option: --bye"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_touched(
    lab: Lab, words: list[str], line: str
) -> None:
    done = lab.run(*words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("connlab: ") and done.stderr.count("\n") == 1
    assert line in done.stderr
    assert lab.reached == []


def test_a_total_for_each_server(lab: Lab) -> None:
    lab.counts = {"x": 1_234_567}
    done = lab.run()
    assert done.exit_code == 0, done.output
    assert cells(done) == [["server1", "1,234,567", "0.250"], ["server2", "1,234,567", "0.250"]]
    assert "2,469,134 connections on server1, server2" in done.output
    asked = lab.asked[0]
    assert (asked["ranges"], asked["by"]) == ([[1, 65535]], "none")
    assert asked["side"] == "local"
    assert asked["states"] == list(wire.TCP_STATES)
    assert sorted(lab.reached) == ["server1", "server2"]
    assert all(not link.files and not link.open for link in lab.made)


def test_the_most_come_first_and_what_is_hidden_is_said(lab: Lab) -> None:
    lab.counts = {"10000": 2, "9": 2, "443": 70, "80": 1}
    done = lab.run("--by", "port", "--top", "2", "--ports", "1-10000", "--hosts", "server1")
    assert cells(done) == [["server1", "443", "70"], ["server1", "9", "2"]]
    assert "75 connections on server1; 3 of them in 2 rows not shown (--top)" in done.output
    assert lab.asked[0]["ranges"] == [[1, 10000]]


@pytest.mark.parametrize("number", [0, 1])
def test_few_connections(lab: Lab, number: int) -> None:
    lab.counts = {"established": number} if number else {}
    done = lab.run("--by", "state", "--hosts", "server1")
    assert cells(done) == [["server1", "established", "1"]] * number
    plural = "" if number == 1 else "s"
    assert done.output.splitlines()[-1] == f"{number} connection{plural} on server1"


def test_hosts_of_any_group_each_once(lab: Lab) -> None:
    lab.counts = {"fd63:6f6e:6e6c:1111:2222:3333:4444:5555": 3}
    done = lab.run(
        "--by", "peer", "--side", "peer", "--hosts", "proxy1,servers", "--hosts", "client1,proxy1"
    )
    assert [row[0] for row in cells(done)] == ["proxy1", "server1", "server2", "client1"]
    assert all(row[1] == next(iter(lab.counts)) for row in cells(done))
    assert {message["side"] for message in lab.asked} == {"peer"}


def test_states_narrow(lab: Lab) -> None:
    assert lab.run("--state", "established,time-wait", "--state", "closing").exit_code == 0
    assert lab.asked[0]["states"] == ["established", "time-wait", "closing"]


def test_json_holds_all(lab: Lab) -> None:
    lab.counts = {f"198.18.1.{last}": last for last in range(1, 31)}
    done = lab.run("--by", "peer", "--json", "--hosts", "server2", "--state", "established")
    data = json.loads(done.stdout)
    assert data["hosts"]["server2"]["counts"] == lab.counts
    assert data["hosts"]["server2"]["total"] == data["total"] == 465
    assert data["hosts"]["server2"]["seconds"] == 0.25
    assert (data["ranges"], data["side"]) == ([[1, 65535]], "local")
    assert (data["by"], data["states"]) == ("peer", ["established"])


def test_a_kernel_that_does_not_tell_is_a_fault_of_the_lab(lab: Lab) -> None:
    reason = "sock_diag: ENOENT (No such file or directory)"
    lab.error = {"event": "error", "kind": "fault", "message": reason}
    done = lab.run("--hosts", "server1")
    assert done.exit_code == 3
    assert done.stderr == f"connlab: host server1: {reason}\n"
    assert all(not link.files and not link.open for link in lab.made)


def test_an_inventory_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["count", "-i", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert "expected a file or directory that exists" in done.stderr
