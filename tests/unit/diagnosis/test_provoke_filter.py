"""What a provoked limit came to, from the run that was made of it."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from evidence import Found, hosts, measured
from jinja2 import Template
from runs import SCENARIO, million

from bench.diagnosis.diagnose import diagnose
from bench.model.catalogue import CATALOGUE
from bench.results.format import Bound, Predicted
from bench.scenario import Scenario, load

PLAYBOOKS = Path(__file__).resolve().parents[3] / "playbooks"
_spec = importlib.util.spec_from_file_location("provoke", PLAYBOOKS / "filter_plugins/provoke.py")
assert _spec and _spec.loader
provoke = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(provoke)

LOWERED = {"nofile_on", "sysctl_on", "tasks_on", "tracked", "unaliased", "untuned"}
VALUES = {"nofile", "sysctl", "tasks"}
CASE = {"name": "nofile, hard", "bound_by": "nofile", "within": 0.03}


def outcome(
    held: int, errno: str = "EMFILE", host: str = "server1", **limits: int
) -> dict[str, Any]:
    run = million()
    wanted = SCENARIO.model_copy(update={"expect": "limit"})
    run.measured = measured(held)
    run.hosts = hosts()
    run.diagnosis = diagnose(
        wanted, run.measured, Found(run.hosts, {"server": {errno: 9}}, stopped_by="limit")
    )
    name = min(limits, key=lambda one: limits[one])
    run.predicted = Predicted(
        max_connections=limits[name],
        bound_by=name,
        kernel_bytes_per_connection=1.0,
        limits=limits,
        bounds=[
            Bound(
                name=name,
                end="server",
                host=host,
                max_connections=limits[name],
                limit=limits[name],
                used=0,
                per_connection=1.0,
                unit="of them",
            )
        ],
    )
    return {"ansible_facts": {"bench_run": json.loads(run.model_dump_json(by_alias=True))}}


def aborted(made: dict[str, Any]) -> dict[str, Any]:
    made["ansible_facts"]["bench_run"] |= {"verdict": "aborted", "reason": "interrupted"}
    return made


def test_a_row_where_model_run_and_diagnosis_agree() -> None:
    row = provoke.provoke_row(CASE, outcome(7_976, nofile=8_000, tuples=9_000))
    assert (row["predicted"], row["held"], row["named"]) == (8_000, 7_976, "nofile")
    assert (row["host"], row["sure"], row["wrong"]) == ("server1", "certain", [])
    assert row["off"] == pytest.approx(-0.003)
    assert "EMFILE 9 times" in row["evidence"]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (outcome(7_759, nofile=8_000), "7,759 measured, 8,000 predicted"),
        (outcome(8_241, nofile=8_000), "8,241 measured, 8,000 predicted"),
        (outcome(8_000, nofile=8_000, tuples=7_999), "the model named tuples"),
        (outcome(8_000, "ENFILE", nofile=8_000), "the diagnosis named fs.file-max"),
        (outcome(8_000, tuples=8_000), "8,000 measured, 0 predicted"),
        (outcome(8_000, host="client1", nofile=8_000), "on server1, expected client1"),
        (aborted(outcome(8_000, nofile=8_000)), "verdict aborted: interrupted"),
        (outcome(8_000, "EPIPE", nofile=8_000), "the diagnosis is unsure"),
    ],
)
def test_what_does_not_agree_is_wrong(made: dict[str, Any], said: str) -> None:
    assert any(said in one for one in provoke.provoke_row(CASE, made)["wrong"])


@pytest.mark.parametrize(("held", "wrong"), [(7_500, 0), (8_500, 0), (7_499, 1), (8_501, 1)])
def test_as_far_off_as_it_may_be_is_right(held: int, wrong: int) -> None:
    row = provoke.provoke_row({**CASE, "within": 0.0625}, outcome(held, nofile=8_000))
    assert len(row["wrong"]) == wrong


def test_held_is_what_all_counts_agree_on() -> None:
    made = outcome(8_000, nofile=8_000)
    counts = made["ansible_facts"]["bench_run"]["measured"]["established"]
    for name, held in (("ss", 7_990), ("servers", 7_980), ("clients", 7_970)):
        counts[name] = held
        assert provoke.provoke_row(CASE, made)["held"] == held


def test_a_limit_that_bounds_no_number_has_to_be_named_only() -> None:
    burst = {"name": "nofile, hard", "bound_by": "nofile"}
    row = provoke.provoke_row(burst, outcome(5, tuples=9_000))
    assert (row["predicted"], row["off"], row["wrong"]) == (None, None, [])


def test_every_case_can_be_run() -> None:
    listed = yaml.safe_load((PLAYBOOKS / "vars" / "provocations.yml").read_text())
    cases = listed["provocations"]
    assert len({case["name"] for case in cases}) == len(cases) >= 12
    for case in cases:
        made = load("ceiling", {**listed["provoke_usual"], **case.get("set", {})})
        assert isinstance(made, Scenario)
        assert case["bound_by"] in CATALOGUE or case["bound_by"] == "backlog"
        assert set(case) <= {"name", "bound_by", "within", "set", "floor_below"} | LOWERED | VALUES


def test_what_a_case_lowers_is_put_back_whatever_comes_of_it() -> None:
    (case,) = yaml.safe_load((PLAYBOOKS / "tasks" / "provoke.yml").read_text())
    lowered = "".join(str(step.get("when", "")) for step in case["block"])
    assert {key for key in LOWERED if f"provocation.{key} " in lowered} == LOWERED
    (last,) = case["always"]
    assert last["ansible.builtin.include_tasks"] == "unprovoke.yml"
    undo = yaml.safe_load((PLAYBOOKS / "tasks" / "unprovoke.yml").read_text())
    roles = [step["ansible.builtin.include_role"] for step in undo if _role(step)]
    reverted = {role["name"] for role in roles if role.get("tasks_from") == "revert"}
    assert reverted == {"tune_limits", "tune_sysctl"}
    assert undo[-1]["loop"] == ["tune_sysctl", "tune_limits", "alias_ips"]
    commands = " ".join(str(step.get("ansible.builtin.command")) for step in undo)
    assert "systemctl revert" in commands and "nft delete table" in commands


def _role(step: dict[str, Any]) -> bool:
    return "ansible.builtin.include_role" in step


@pytest.mark.parametrize("lab", ["a", "connlab-vm", "provoke", "zz9"])
@pytest.mark.parametrize("tasks", ["provoke", "unprovoke"])
def test_a_lowered_limit_is_read_after_the_labs_own(lab: str, tasks: str) -> None:
    # pam_limits(8) and systemd take files in the order of their names, and the last one wins.
    text = (PLAYBOOKS / f"tasks/{tasks}.yml").read_text()
    names = re.findall(r"tune_limits_lab_name: (.+)", text)
    assert len(names) == 1
    files = [
        f"90-{one}.conf" for one in (lab, Template(yaml.safe_load(names[0])).render(lab_name=lab))
    ]
    assert sorted(files) == files and len(set(files)) == 2
