"""``python -m bench plan``: what it says, what it refuses, and the inventory that it writes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from captured import collected
from rich.console import Console
from tune_loader import load
from typer.testing import CliRunner, Result

from bench import files, inventory, scenario
from bench.cli import app, fleetview
from bench.errors import InputError
from bench.hosts import survey
from bench.plan import planning
from bench.plan.topology import Topology
from bench.results import facts
from bench.results.format import HostRecord
from bench.sizing import inventories, rates
from bench.sizing.fleet import Fleet

USUAL = {
    "--connections": "10_000_000",
    "--server-ram": "64GiB",
    "--server-cores": "16",
    "--client-ram": "16GiB",
}


def call(*others: str, **changes: str) -> Result:
    options = {**USUAL, "--results": "/none"}
    options |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    words = [word for option in options.items() for word in option]
    return CliRunner().invoke(app, ["plan", *words, *others])


def as_json(**changes: str) -> dict[str, Any]:
    done = call("--json", **changes)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def whole(found: dict[str, Any]) -> Fleet:
    """The plan in what --json prints."""
    return Fleet.model_validate({name: found[name] for name in Fleet.model_fields})


def test_the_plan_as_text() -> None:
    done = call()
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "10,000,000 connections: 1 server, 3 clients"
    assert all(len(line) <= 80 for line in lines)
    for said in (
        r"connections each, at most +10,000,000 +3,333,334",
        r"worker processes +16 +4",
        r"addresses +1 +52",
        r"established-hash entries +16,777,216 +4,194,304",
        r"memory given +64.00 GiB +16.00 GiB",
        r"bound by: servers none, one host is enough \(memory allows [\d,]+ each\);",
        r"tuples: 156 client addresses x 64,512 ports x 1 server endpoint = 10,063,872",
        r"rate: built in: 20 µs of CPU per connection and end",
        r"note: boot servers with thash_entries=16777216",
    ):
        assert re.search(said, " ".join(done.stdout.split("\n"))), said
    assert "┃" not in done.stdout


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal_it_is_a_table_and_nothing_is_cut_off(columns: int) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=columns)
    found = whole(as_json(connections="100M", server_ram="1000TiB", client_ram="1000TiB"))
    fleetview.show(found, [], None, console)
    shown = out.getvalue()
    assert "┃" in shown
    assert "…" not in shown
    for row in fleetview.rows(found):
        assert all(cell in shown for cell in row)


def test_the_plan_as_json() -> None:
    found = as_json()
    fleet = whole(found)
    assert set(found) - set(Fleet.model_fields) == {"set", "sysctl", "notes", "written"}
    assert fleet.ramp.source == rates.BUILT_IN.source
    assert fleet.ramp.connections_per_second == 12 * 50_000
    assert found["servers"]["limits"]["memory"] == fleet.servers.most
    assert found["set"] == {"active_workers": 4, "acceptors": 16}
    assert found["written"] is None


def test_units_of_sizes_and_counts_are_understood() -> None:
    assert as_json(connections="10M", server_ram="68719476736")["servers"] == as_json()["servers"]
    assert as_json(server_ram="64GB")["servers"]["ram"]["given"] == 64 * 10**9
    assert as_json(connections="1.5M")["connections"] == 1_500_000
    assert as_json(rate="1k")["ramp"]["per_core"] == 1_000
    assert as_json(spare="0%")["servers"]["ram"]["spare"] == 0
    assert as_json(watch="none")["set"]["watch"] == "none"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"connections": "0"}, "--connections: got '0', expected 1 to"),
        ({"connections": "-5"}, "--connections: got '-5', expected a whole number"),
        ({"connections": "1.5"}, "--connections: got '1.5', expected a whole number"),
        ({"server_cores": "0"}, "--server-cores: got '0', expected 1 to 8,192"),
        ({"client_cores": "many"}, "--client-cores: got 'many', expected a whole number"),
        ({"server_ram": "64QB"}, "--server-ram: got '64QB', expected a size such as 64GiB, in B,"),
        ({"server_ram": "0"}, "--server-ram: got '0', expected 1 B to"),
        ({"server_ram": "5000TiB"}, "--server-ram: got '5000TiB', expected 1 B to"),
        ({"client_ram": "200MiB"}, "--client-ram: got 200.00 MiB, expected at least 1,"),
        ({"memory_floor": "1MiB"}, "--memory-floor: got '1MiB', expected 16.00 MiB to"),
        ({"servers": "0"}, "--servers: got '0', expected 1 to"),
        ({"servers": "1", "connections": "50M"}, "--servers: got 1, expected at least 4: memory"),
        ({"server_ports": "2000"}, "--server-ports: got '2000', expected 1 to 1,024"),
        ({"addresses_per_server": "255"}, "--addresses-per-server: got '255', expected 1 to 254"),
        ({"nofile": "60"}, "--nofile: got 60, expected at least 80"),
        ({"kernel": "linux"}, "--kernel: got 'linux', expected a release such as 6.1"),
        ({"kernel": "6.1\n- x"}, "--kernel: got '6.1\\n- x', expected a release"),
        ({"watch": "poll"}, "--watch: got 'poll', expected epoll or none"),
        ({"spare": "95%"}, "--spare: got '95%', expected 0% to 90%"),
        ({"spare": "0.1"}, "--spare: got '0.1', expected a percentage such as 10%"),
        ({"rate": "0"}, "--rate: got '0', expected 1 to"),
        ({"connections": "1T"}, "--connections: got '1T', expected a whole number"),
        ({"connections": "10G", "server_ram": "200TiB"}, "and 1 server address, expected no more"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(
    changes: dict[str, str], said: str, tmp_path: Path
) -> None:
    done = call("--write", str(tmp_path / "new"), **changes)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


FLEETS: dict[str, dict[str, str]] = {
    "usual": {},
    "one": {"connections": "1", "server_cores": "1", "client_cores": "1"},
    "odd": {"connections": "12_345_677", "servers": "3", "client_ram": "7GiB"},
    "ports": {"connections": "40M", "server_ports": "40", "nofile": "2_000_000", "watch": "none"},
    "addresses": {"addresses_per_server": "5", "server_ram": "8GiB", "memory_floor": "64MiB"},
    "prefix": {"connections": "100M", "server_ram": "1TiB", "client_ram": "256GiB", "rate": "10"},
    "many": {"connections": "60M", "client_ram": "2GiB", "server_ram": "4TiB"},
}


def listed(folder: Path) -> dict[str, Any]:
    """What ansible-inventory makes of a directory."""
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "--list", "-i", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "WARNING" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("changes", FLEETS.values(), ids=FLEETS)
def test_what_is_written_is_an_inventory_for_exactly_so_many(
    changes: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "fleet"
    done = call("--json", "--write", str(folder), **changes)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["written"] == str(folder)
    fleet = whole(found)

    hosts = inventory.load([folder])
    assert len(hosts.of("servers")) == fleet.servers.hosts
    assert len(hosts.of("clients")) == fleet.clients.hosts
    assert (hosts.substrate, hosts.underlay) == ("remote", False)
    for group, end in (("servers", fleet.servers), ("clients", fleet.clients)):
        assert {len(host.data_addresses) for host in hosts.of(group)} == {end.addresses}
    reached = [host.address for host in hosts.hosts.values()]
    assert len(set(reached)) == len(reached)
    assert all(re.fullmatch(r"10(\.\d+){3}", address) for address in reached)

    assert hosts.settings == found["set"]
    wanted = scenario.load("million", hosts.settings, hosts.connections)
    assert wanted.connections == fleet.connections
    plan = planning.plan_for(Topology(wanted, hosts))
    shares = [plan.share(host.name) for host in hosts.of("clients")]
    assert sum(shares) == fleet.connections
    assert max(shares) == fleet.clients.largest
    assert plan.capacity == fleet.tuples

    variables = listed(folder)["_meta"]["hostvars"]
    roles = load("lab_common", "filter_plugins", "alias_ips")
    first = variables["server1"]
    fields = {name: roles.alias_ips_fields(host) for name, host in variables.items()}
    assert roles.alias_ips_errors(fields, first["lab_prefixes"]) == []
    assert first["tune_limits_nofile"] == fleet.nofile
    assert first["tune_sysctl_extra"] == found["sysctl"]
    assert first.get("set", {}) == found["set"]


def test_every_variable_of_the_example_is_there_and_explained(tmp_path: Path) -> None:
    assert call("--write", str(tmp_path), server_ports="200").exit_code == 0
    for name in ("group_vars/all.yml", "group_vars/clients.yml"):
        example = yaml.safe_load((inventories.EXAMPLE / name).read_text())
        written = yaml.safe_load((tmp_path / name).read_text())
        assert set(example) <= set(written)
    texts = {path: path.read_text() for path in tmp_path.rglob("*.yml")}
    assert len(texts) == 3
    for text in texts.values():
        assert "192.0.2." not in text
        assert "203.0.113." not in text
    checkout = Path(__file__).parents[3]
    lint = [sys.executable, "-m", "yamllint", "--strict", "-c", str(checkout / ".yamllint")]
    done = subprocess.run([*lint, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_commands_in_the_comments_do_what_they_say(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    changes = {"connections": "1.5M", "server_ports": "12", "kernel": "6.1.0-56-cloud-amd64"}
    assert call("--write", str(folder), **changes).exit_code == 0
    text = (folder / "hosts.yml").read_text()
    lines = [line.removeprefix("# ").strip() for line in text.splitlines()]
    commands = " ".join(lines).replace("\\ ", " ")
    planned = re.search(r"(?<=python -m bench plan ).*? (?=# Fill)", commands)
    assert planned
    again = CliRunner().invoke(app, ["plan", *planned[0].split(), "--results", "/none", "--json"])
    assert json.loads(again.stdout)["connections"] == 1_500_000
    run = re.search(r"python (-m bench run .*?)(?= # )", commands)
    assert run
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} {run[1].replace('DIR', str(folder))} --dry-run"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("million: 1,500,000 connections from 1 client to 1 server;")


def test_what_is_written_is_what_preflight_looks_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "fleet"
    few = {"connections": "1.5M", "client_ram": "8GiB"}
    assert call("--write", str(folder), server_ports="4", **few).exit_code == 0

    def look(topology: Topology, _: Any) -> tuple[dict[str, HostRecord], dict[str, Any]]:
        """Hosts with all their addresses, and nothing else known of them."""
        found = {
            host.name: HostRecord(
                groups=list(host.groups),
                kernel="6.1.0-56-cloud-amd64",
                python="3.11.2",
                cpu=16,
                mem_total_kib=64 << 20,
                limits={"nofile_soft": 1_024, "nofile_hard": 1 << 20, "own_tasks": 4},
                addresses=list(host.data_addresses),
                phases={"before": facts.phase(collected("6.1", "before"))},
            )
            for host in topology.inventory.hosts.values()
        }
        return found, {name: {} for name in found}

    monkeypatch.setattr(survey, "look", look)
    done = CliRunner().invoke(app, ["preflight", "--json", "-i", str(folder)])
    assert done.exit_code in (0, 1), done.output
    bounds = {one["name"]: one for one in json.loads(done.stdout)["bounds"]}
    assert bounds["tuples"]["max_connections"] >= 1_500_000


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / ".hidden").touch()
    file.touch()
    for folder, said in (
        (full, f"--write: got {full}, which is not empty, expected a directory that is new"),
        (file, f"--write: got {file}, which is no directory, expected a directory"),
        (file / "x", f"--write: {file / 'x'}: Not a directory"),
        (tmp_path / "a,b", "expected a path without a comma"),
    ):
        done = call("--write", str(folder))
        assert done.exit_code == 2
        assert said in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".hidden", "file", "full"]


def test_more_than_a_run_takes_is_planned_and_not_written(tmp_path: Path) -> None:
    assert call(connections="200M").exit_code == 0
    done = call("--write", str(tmp_path), connections="200M")
    assert done.exit_code == 2
    assert "expected at most 100,000,000 with --write" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = files.write

    def refuse(path: Path, text: str) -> None:
        if path.name == "all.yml":
            raise OSError(28, os.strerror(28))
        usual(path, text)

    monkeypatch.setattr(files, "write", refuse)
    content = {"hosts.yml": "---\n", "group_vars/all.yml": "---\n"}
    with pytest.raises(InputError, match="No space left on device"):
        inventories.write(tmp_path / "one" / "two", content)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (14.14, "14.1 s"), (119.94, "119.9 s"), (212.2, "3 min 32 s")],
)
def test_durations(seconds: float, said: str) -> None:
    assert fleetview.duration(seconds) == said
