"""Names that paths are made of are refused by every playbook before anything is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROOT = Path(__file__).resolve().parents[3]
ROLES = {
    "alias_ips": ["validate"],
    "tune_sysctl": ["probe", "revert"],
    "tune_limits": ["main"],
    "nat_router": ["main", "clients"],
    "reverse_proxy": ["validate"],
}


def refused(task: Mapping[str, object], values: Mapping[str, object]) -> str:
    """What an assert says; empty where all of it holds."""
    templar = Templar(DataLoader(), variables=dict(values))
    body = task["ansible.builtin.assert"]
    assert isinstance(body, dict)
    wanted = body["that"] if isinstance(body["that"], list) else [body["that"]]
    for condition in wanted:
        if not templar.evaluate_conditional(trust_as_template(str(condition))):
            return str(templar.template(trust_as_template(body["fail_msg"])))
    return ""


def names(given: Mapping[str, object]) -> list[str]:
    """What playbooks/tasks/names.yml says of a lab's variables."""
    [task] = yaml.safe_load((ROOT / "playbooks/tasks/names.yml").read_text())
    return [
        said
        for item in task["loop"]
        if item["name"] in given
        if (said := refused(task, {"item": item, "names_value": str(given[item["name"]])}))
    ]


@pytest.mark.parametrize("name", ["connlab", "a", "vm-2", "x" * 24])
def test_what_is_a_labs_name_passes(name: str) -> None:
    assert names({"lab_name": name, "lab_mgmt_prefix": "169.254.198.0/24"}) == []


@pytest.mark.parametrize("name", ["../x", "", "Lab", "1lab", "-x", "a b", "a;b", "a/b", "x" * 25])
@pytest.mark.parametrize("role", ["", *ROLES])
def test_what_is_no_name_is_one_line(name: str, role: str) -> None:
    if role and len(name) == 25:
        name *= 2
    said = of_role(role, name) if role else "".join(names({"lab_name": name}))
    assert said.startswith(f"lab_name: got '{name}', expected up to ")
    assert "\n" not in said


@pytest.mark.parametrize("role", ["", *ROLES])
def test_a_line_break_in_a_name_is_shown_as_such(role: str) -> None:
    said = of_role(role, "lab\n") if role else "".join(names({"lab_name": "lab\n"}))
    assert said.startswith(r"lab_name: got 'lab\n', expected ")
    assert "\n" not in said


@pytest.mark.parametrize("name", ["cp", "image", "ssh"])
def test_a_directory_of_the_labs_state_is_no_name(name: str) -> None:
    assert len(names({"lab_name": name})) == 1


@pytest.mark.parametrize("prefix", ["10.0.0.0/8", "169.254.198.1/24", "x", "1.2.3.0/24; reboot"])
def test_a_management_network_that_is_none_is_one_line(prefix: str) -> None:
    assert names({"lab_mgmt_prefix": prefix}) == [
        f"lab_mgmt_prefix: got '{prefix}', expected an IPv4 /24 such as 169.254.198.0/24"
    ]


@pytest.mark.parametrize("interface", ["../x", "", "a b", "x" * 16, "."])
def test_an_interface_that_has_no_name_is_one_line(interface: str) -> None:
    [said] = names({"lab_data_interface": interface})
    assert said.startswith(f"lab_data_interface: got '{interface}', expected an interface name")


def of_role(role: str, name: str) -> str:
    """What a role's check says of a name."""
    [task] = yaml.safe_load((ROOT / "roles" / role / "tasks" / "name.yml").read_text())
    return refused(task, {f"{role}_lab_name": name})


@pytest.mark.parametrize("role", ROLES)
def test_a_role_checks_its_name_before_anything_else(role: str) -> None:
    assert of_role(role, "connlab") == of_role(role, "connlab_provoked") == ""
    for file in ROLES[role]:
        tasks = yaml.safe_load((ROOT / "roles" / role / "tasks" / f"{file}.yml").read_text())
        assert tasks[0]["ansible.builtin.import_tasks"] == "name.yml", f"{role}: {file}"


@pytest.mark.parametrize("playbook", ["create", "destroy", "tune", "revert", "provoke"])
def test_a_playbook_checks_names_before_anything_else(playbook: str) -> None:
    plays = yaml.safe_load((ROOT / "playbooks" / f"{playbook}.yml").read_text())
    if "import_playbook" in plays[0]:
        plays = yaml.safe_load((ROOT / "playbooks" / plays[0]["import_playbook"]).read_text())
    first = (plays[0].get("pre_tasks") or plays[0]["tasks"])[0]
    assert first["ansible.builtin.import_tasks"] == "tasks/names.yml"


def test_nothing_is_read_through_a_shell() -> None:
    files = [*ROOT.glob("roles/**/*.yml"), *ROOT.glob("playbooks/**/*.yml")]
    found = [path for path in files if has_pipe(path.read_text().splitlines())]
    assert not found


def has_pipe(lines: Iterable[str]) -> bool:
    return any("lookup('pipe'" in line or "builtin.pipe'" in line for line in lines)


@pytest.mark.parametrize("playbook", ["destroy", "revert"])
def test_a_playbook_that_is_given_no_name_ends_there(playbook: str) -> None:
    extra = json.dumps({"lab_name": "../x"})
    words = [f"playbooks/{playbook}.yml", "--limit", "localhost,underlay", "-e", extra]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "LC_ALL": "C.UTF-8", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
    )
    assert done.returncode == 2
    assert "lab_name: got '../x', expected up to 24 lower-case letters" in done.stdout
    assert "changed=0" in done.stdout and "ok=0" in done.stdout
