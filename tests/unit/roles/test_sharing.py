"""What roles share is in lab_common, and who uses it says so."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

ROLES = Path(__file__).resolve().parents[3] / "roles"
COMMON = "lab_common"
LINKED = {"guard/module_utils/connlab_journal.py"}
"""Pushed with the agent, and so a file of its own."""

USERS = sorted(path.name for path in ROLES.iterdir() if path.name != COMMON)


def shared(role: str) -> set[str]:
    """Modules that a role imports and that are not its own."""
    names: set[str] = set()
    for path in (ROLES / role).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                full = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                names |= {
                    name.removeprefix("ansible.module_utils.").split(".")[0]
                    for name in full
                    if name.startswith("ansible.module_utils.connlab_")
                }
    return {name for name in names if not (ROLES / role / "module_utils" / f"{name}.py").exists()}


@pytest.mark.parametrize("role", USERS)
def test_a_role_names_what_it_shares_as_a_dependency(role: str) -> None:
    needed = shared(role)
    assert all((ROLES / COMMON / "module_utils" / f"{name}.py").is_file() for name in needed)
    named = yaml.safe_load((ROLES / role / "meta" / "main.yml").read_text())["dependencies"]
    assert all(one == {"role": COMMON} for one in named)
    assert bool(named) >= bool(needed)


def test_nothing_is_shared_by_a_link() -> None:
    links = {str(path.relative_to(ROLES)) for path in ROLES.rglob("*") if path.is_symlink()}
    assert links == LINKED


def test_the_readme_names_every_file_and_its_users() -> None:
    lines = (ROLES / COMMON / "README.md").read_text().splitlines()
    for path in (ROLES / COMMON / "module_utils").glob("*.py"):
        (line,) = [line for line in lines if f"{path.name}`" in line]
        users = {name.strip() for name in line.split("|")[3].split(",")}
        assert {role for role in USERS if path.stem in shared(role)} <= users
