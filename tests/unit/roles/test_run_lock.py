"""Playbooks that change hosts look for a run in progress first."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

PLAYBOOKS = Path(__file__).resolve().parents[3] / "playbooks"


@pytest.mark.parametrize("name", ["create", "destroy", "tune", "revert"])
def test_whatever_changes_hosts_looks_for_a_run_first(name: str) -> None:
    plays = yaml.safe_load((PLAYBOOKS / f"{name}.yml").read_text())
    assert plays[0]["import_playbook"] == "idle.yml"


def test_provoke_looks_for_a_run_before_it_lowers_anything() -> None:
    plays = yaml.safe_load((PLAYBOOKS / "provoke.yml").read_text())
    assert [play.get("import_playbook", play.get("hosts")) for play in plays[:3]] == [
        *("localhost", "idle.yml"),
        "~^(servers|clients)$",
    ]


@pytest.mark.parametrize("name", ["tune", "revert"])
def test_the_machine_underneath_counts_where_it_is_changed(name: str) -> None:
    plays = yaml.safe_load((PLAYBOOKS / f"{name}.yml").read_text())
    assert "underlay" in plays[0]["vars"]["idle_hosts"]
