"""``predict`` and ``preflight`` on evidence that real hosts gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from captured import collected, texts
from typer.testing import CliRunner, Result

from bench import inventory
from bench.cli import app, model
from bench.errors import LabError
from bench.hosts import survey
from bench.inventory import Host, Inventory
from bench.results import facts
from bench.results.format import HostRecord

ADDRESSES = {
    "server1": ("servers", "198.18.0.1"),
    "client1": ("clients", "198.18.1.1"),
    "client2": ("clients", "198.18.2.1"),
}


def record(name: str, kernel: str = "6.1") -> HostRecord:
    group, address = ADDRESSES[name]
    return HostRecord(
        groups=[group],
        kernel={"6.1": "6.1.0-56-cloud-amd64", "5.10": "5.10.0-32-cloud-amd64"}[kernel],
        python="3.11.2",
        cpu=1,
        mem_total_kib=990_000,
        limits={"nofile_soft": 1_024, "nofile_hard": 20_000, "own_tasks": 4},
        sysctl={
            "fs.file-max": "40449",
            "fs.nr_open": "1048576",
            "fs.epoll.max_user_watches": "218824",
            "net.core.somaxconn": "4096",
        },
        addresses=[address],
        phases={"before": facts.phase(collected(kernel, "before"))},
    )


class Lab:
    """Three virtual machines that were never tuned."""

    def __init__(self) -> None:
        self.hosts = {name: record(name) for name in ADDRESSES}
        self.texts: dict[str, Any] = {name: texts("6.1", "before") for name in ADDRESSES}
        self.settings: dict[str, Any] = {}

    def listed(self, sources: list[Path], extra_vars: list[str]) -> Inventory:
        hosts = {
            name: Host(name, (group,), name, 22, "lab", None, None, (address,))
            for name, (group, address) in ADDRESSES.items()
        }
        return Inventory("inventory/test", "vm", hosts, False, None, 100_000, self.settings)

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(app, [*words, "--set", "memory_floor_mib=100"])


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(inventory, "load", made.listed)
    monkeypatch.setattr(survey, "look", lambda *_: (made.hosts, made.texts))
    return made


def test_predict_shows_every_limit_and_which_binds_on_each_end(lab: Lab) -> None:
    done = lab.run("predict")
    assert done.exit_code == 0, done.output
    rows = [line.split()[0] for line in done.output.splitlines() if line.strip()]
    assert {"tuples", "nofile", "memory", "fs.file-max", "fs.epoll.max_user_watches"} <= set(rows)
    assert "server: fs.file-max binds at 40,000" in done.output
    assert "path: tuples binds at 129,024" in done.output
    assert "client: fs.file-max binds at 80,000" in done.output
    assert "accept queue holds 4,097" in " ".join(done.output.split())
    assert "…" not in done.output


def test_predict_explains_every_formula_with_its_source(lab: Lab) -> None:
    said = " ".join(lab.run("predict", "--explain").output.split())
    assert "(40,449 - 449) / 1 open files a connection = 40,000" in said
    assert "alloc_empty_file(): ENFILE" in said
    assert said.count("source:") == said.count("counts:") >= 8


def test_predict_as_data(lab: Lab) -> None:
    found = json.loads(lab.run("predict", "--json").output)
    assert (found["max_connections"], found["bound_by"]) == (40_000, "fs.file-max")
    assert found["binding"] == {
        "server": "fs.file-max",
        "client": "fs.file-max",
        "path": "tuples",
    }
    assert found["bounds"][0]["host"] == "server1"
    assert found["connections"] == 100_000


def test_preflight_of_what_fits(lab: Lab) -> None:
    done = lab.run("preflight", "--connections", "40_000")
    assert done.exit_code == 0
    assert lab.run("preflight", "--connections", "40k").output == done.output
    assert "40,000 connections fit; the first limit above them is fs.file-max" in done.output


def test_preflight_of_what_does_not(lab: Lab, tmp_path: Path) -> None:
    values = tmp_path / "values.yml"
    done = lab.run("preflight", "--vars-file", str(values))
    said = " ".join(done.output.split())
    assert done.exit_code == 1
    assert "100,000 connections do not fit: fs.file-max allows 40,000" in said
    assert "40,449 found, 100,449 needed; raised by fs.file-max" in said
    assert yaml.safe_load(values.read_text()) == {
        "connections": 100_000,
        "tune_sysctl_extra": {"fs.file-max": 100_449 + 12_556 + 4_096},
    }
    found = json.loads(lab.run("preflight", "--json").output)
    assert (found["fits"], found["changes"][0]["needed"]) == (False, 100_449)
    assert found["variables"]["connections"] == 100_000


def test_fields_that_the_inventory_sets_count(lab: Lab) -> None:
    words = ("preflight", "--connections", "40_000")
    lab.settings.update(first_client_port=65_436, server_ports="[5000, 5001]")
    done = lab.run(*words)
    assert done.exit_code == 1
    assert "tuples allows 400" in " ".join(done.output.split())
    assert lab.run(*words, "--set", "first_client_port=1024").exit_code == 0
    found = json.loads(lab.run("predict", "--json", "--set", "server_ports=[5000]").output)
    assert (found["bound_by"], found["max_connections"]) == ("tuples", 200)


def test_a_number_of_its_own_beats_what_the_lab_is_sized_for(lab: Lab) -> None:
    lab.settings.update(connections=1_234)
    assert json.loads(lab.run("predict", "--json").output)["connections"] == 1_234
    done = lab.run("preflight", "--json", "--connections", "5k")
    assert json.loads(done.output)["connections"] == 5_000


@pytest.mark.parametrize("command", [("predict",), ("preflight",), ("run", "million", "--dry-run")])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hold_second": 1}, "scenario million: hold_second: unknown field, expected one of"),
        ({"hold_seconds": -1}, "scenario million: hold_seconds: got -1, expected"),
        ({"watch": "["}, "scenario million: watch: got '[', expected"),
        ({"watch": "2026-99-99"}, "scenario million: watch: got '2026-99-99', expected"),
        ({"control_port": 5000}, "control_port: got 5000, expected a port not in server_ports"),
    ],
)
def test_a_bad_field_in_the_inventory_is_one_line(
    lab: Lab, command: tuple[str, ...], fields: dict[str, Any], said: str
) -> None:
    lab.settings.update(fields)
    done = lab.run(*command)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_fields_are_judged_together(lab: Lab) -> None:
    lab.settings.update(server_ports=[6000])
    done = lab.run("run", "million", "--dry-run", "--set", "control_port=5000")
    assert done.exit_code == 0, done.output
    assert "129,024 tuples planned" in done.output


def test_what_is_not_known_is_said(lab: Lab) -> None:
    lab.hosts["client1"] = record("client1", "5.10")
    lab.hosts["client2"].addresses = []
    lab.texts["server1"] = {}
    lab.hosts["server1"].phases["before"].missing["slabinfo"] = "Permission denied"
    said = " ".join(lab.run("predict").output.split())
    assert "different kernels" in said and "5.10.0-32-cloud-amd64 on client1" in said
    assert "server1: slabinfo could not be read (Permission denied)" in said
    assert "built-in object sizes, those of Linux 6.1" in said
    assert "1 client address of the inventory not counted: on no host yet" in said


@pytest.mark.parametrize("text", ["0", "-5", "1x", "", "1.5"])
def test_a_number_that_is_none_is_refused(lab: Lab, text: str) -> None:
    done = lab.run("preflight", "--connections", text)
    assert done.exit_code == 2
    assert f"--connections: got {text!r}" in done.output or f"got {text}," in done.output


def test_a_file_that_cannot_be_written_is_named(lab: Lab, tmp_path: Path) -> None:
    done = lab.run("preflight", "--vars-file", str(tmp_path / "no" / "values.yml"))
    assert done.exit_code == 2
    assert "--vars-file" in done.output and "No such file" in done.output


def test_a_host_that_cannot_be_reached_is_a_fault(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*_: Any) -> Any:
        raise LabError("host client1: no answer")

    monkeypatch.setattr(survey, "look", look)
    done = lab.run("predict")
    assert (done.exit_code, "host client1: no answer" in done.output) == (3, True)


def test_amounts_are_told_in_their_unit() -> None:
    assert model.amount(3 << 30, "bytes") == "3.00 GiB"
    assert model.amount(3_000_000, "descriptors") == "3,000,000"
