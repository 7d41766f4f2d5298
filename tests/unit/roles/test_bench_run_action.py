"""What the action plugin tells ``python -m bench`` to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible import context
from tune_loader import load
from typer.testing import CliRunner

from bench import scenario
from bench.cli import app
from bench.inventory import load as inventory_of

plugin = load("bench_run", "action_plugins", "bench_run")


class Task:
    check_mode = False

    def __init__(self, args: dict[str, Any]) -> None:
        self.args = args


def command(
    monkeypatch: pytest.MonkeyPatch, args: dict[str, Any], inventory: str, *extra_vars: str
) -> list[str]:
    """The words behind ``python -m bench``."""
    monkeypatch.setattr(context, "CLIARGS", {"extra_vars": extra_vars})
    extra = {key: value for text in extra_vars for key, value in json.loads(text).items()}
    monkeypatch.setattr(plugin, "load_extra_vars", lambda loader: extra)
    action = plugin.ActionModule.__new__(plugin.ActionModule)
    action._task, action._loader = Task(args), None
    words: list[str] = action._command({"ansible_inventory_sources": [inventory]})
    return words[3:]


@pytest.fixture
def folder(tmp_path: Any) -> str:
    """An inventory with fields of its own."""
    (tmp_path / "hosts.yml").write_text(
        "all: {vars: {set: {server_ports: [5000, 5001], hold_seconds: 7}}}\n"
        "servers: {hosts: {a: {lab_data_address: 198.18.0.1}}}\n"
        "clients: {hosts: {b: {lab_data_address: 198.18.1.1}}}\n"
    )
    return str(tmp_path)


@pytest.mark.parametrize(
    ("fields", "tuples"),
    [
        ({"server_ports": [5000, 5001], "hold_seconds": 7}, 129_024),  # bench_run_set's default
        ({"hold_seconds": 1}, 64_512),
        ({}, 64_512),
    ],
)
def test_a_task_that_sets_fields_sets_all_that_are(
    monkeypatch: pytest.MonkeyPatch, folder: str, fields: dict[str, Any], tuples: int
) -> None:
    args = {"scenario": "million", "set": fields, "dry_run": True}
    words = command(monkeypatch, args, folder, '{"connections": 500}')
    done = CliRunner().invoke(app, [one for one in words if one not in ("--progress", "ndjson")])
    assert done.exit_code == 0, done.output
    assert done.output == (
        f"million: 500 connections from 1 client to 1 server; {tuples:,} tuples planned\n"
    )


def test_fields_of_the_command_line_are_not_mixed_with_those_of_the_inventory(
    monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """``-e set=...`` takes the place of the inventory's, for Ansible as for what it starts."""
    given = {"set": {"hold_seconds": 3}}
    args = {"scenario": "million", **given}
    words = command(monkeypatch, args, folder, json.dumps(given))
    told = {words[at + 1] for at, word in enumerate(words) if word == "--set"}
    assert scenario.parse_settings(told) == {"hold_seconds": 3}
    extra = [words[at + 1] for at, word in enumerate(words) if word == "--extra-vars"]
    assert inventory_of([plugin.Path(folder)], extra).settings == {}


def test_a_task_that_sets_none_leaves_it_to_the_inventory(
    monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    words = command(monkeypatch, {"scenario": "million", "preflight": True}, folder)
    assert "--set" not in words
    assert "--extra-vars" not in words
    assert words[-2:] == ["--inventory", folder]


def test_claims_are_a_command_of_their_own(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    words = command(monkeypatch, {"claims": ["nat", "burst"], "profile": "full"}, folder)
    assert words[:6] == ["claims", "run", "nat", "burst", "--profile", "full"]
    assert words[words.index("--inventory") + 1] == folder
    assert "--dry-run" not in words and "--set" not in words
    checked = command(monkeypatch, {"claims": [], "dry_run": True}, folder, '{"lab_routers": 1}')
    assert checked[:4] == ["claims", "run", "--profile", "small"]
    assert checked[checked.index("--extra-vars") + 1] == '{"lab_routers": 1}'
    assert checked[-1] == "--dry-run"
    assert CliRunner().invoke(app, ["claims", "run", "port-myth", *checked[2:]]).exit_code == 0


def test_claims_are_a_list(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    with pytest.raises(plugin.AnsibleActionFail, match="claims: got 'nat', expected a list"):
        command(monkeypatch, {"claims": "nat"}, folder)


@pytest.mark.parametrize(("status", "failed"), [(0, False), (1, True), (3, True)])
def test_claims_without_a_verdict_fail_the_task(status: int, failed: bool) -> None:
    ended = {
        "path": "results/claims.json",
        "summary": ["| claim |"],
        "verdicts": {"nat": "confirmed", "burst": "inconclusive"},
    }
    made = plugin._claims(ended, status)
    assert made["failed"] is failed
    assert made.get("msg") == ("claims without a verdict: burst" if failed else None)


def ran(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, **args: Any
) -> dict[str, Any]:
    """What the task comes to where its command is a shell script."""
    monkeypatch.setattr(plugin.ActionBase, "run", lambda *_: {})
    action = plugin.ActionModule.__new__(plugin.ActionModule)
    action._task = Task(args)
    monkeypatch.setattr(action, "_command", lambda _: ["sh", "-c", script])
    made: dict[str, Any] = action.run()
    return made


def test_a_command_that_ends_with_an_error_fails_the_task(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    event = json.dumps({"event": "error", "exit": 3, "message": "host a: gone \x1b[2J"})
    made = ran(monkeypatch, tmp_path, f"echo '{event}'; exit 3")
    assert (made["failed"], made["exit_status"]) == (True, 3)
    assert made["msg"] == "host a: gone \\x1b[2J"
    silent = ran(monkeypatch, tmp_path, "exit 4")
    assert (silent["failed"], silent["exit_status"]) == (True, 4)
    assert silent["msg"].endswith("exited 4")


def test_a_command_that_only_speaks_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = ran(monkeypatch, tmp_path, "echo nothing to do")
    assert made == {"changed": False, "exit_status": 0, "msg": "nothing to do"}


@pytest.mark.parametrize("verdict", ["pass", "fail", "aborted"])
def test_a_run_fails_the_task_unless_it_passed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verdict: str
) -> None:
    kept = tmp_path / "run.json"
    kept.write_text(json.dumps({"verdict": verdict, "reason": "why", "curve": []}))
    event = json.dumps({"event": "result", "path": str(kept), "summary": []})
    made = ran(monkeypatch, tmp_path, f"echo '{event}'")
    assert made["failed"] is (verdict != "pass")
    assert made.get("msg") == (None if verdict == "pass" else f"verdict {verdict}: why")


@pytest.mark.parametrize("args", [{"scenario": "million"}, {"claims": []}])
def test_check_mode_opens_nothing(
    monkeypatch: pytest.MonkeyPatch, folder: str, args: dict[str, Any]
) -> None:
    assert "--dry-run" not in command(monkeypatch, args, folder)
    monkeypatch.setattr(Task, "check_mode", True)
    assert command(monkeypatch, args, folder)[-1] == "--dry-run"
    # What only looks has no such option.
    looks = command(monkeypatch, {"scenario": "million", "preflight": True}, folder)
    assert "--dry-run" not in looks
