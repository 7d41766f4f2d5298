"""What runs other programs gives them a deadline, and says in one line that it has passed."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from bench.agent.trials import logins, openfiles

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("bench/agent", "roles")


def test_every_program_that_is_waited_for_has_a_deadline() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"subprocess.run", "subprocess.check_output"}
        and "timeout" not in {word.arg for word in node.keywords}
    ]
    assert not found


def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    fake = tmp_path / name
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_a_login_that_does_not_end_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins, "PATIENCE", 0.1)
    put(tmp_path, monkeypatch, "su", "exec sleep 60")
    with pytest.raises(OSError, match=r"^login of lab: no end within 0\.1 s$"):
        logins.login("lab")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exec sleep 60", r"^process \d+: did not report its open files within 0\.3 s$"),
        ("exit 3", r"^process \d+: ended before it reported its open files$"),
    ],
)
def test_a_process_that_does_not_tell_is_named(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openfiles, "PATIENCE", 0.3)
    put(tmp_path, monkeypatch, "python", script)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(OSError, match=said):
        openfiles.together(1, 5)
