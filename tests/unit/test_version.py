"""What ``--version`` says, in a checkout and outside one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import version
from bench.cli import app


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    done = subprocess.run(
        ["git", "-C", folder, *names, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "Begin", "--date", "2026-01-31T12:00:00Z")
    monkeypatch.setattr(version, "ROOT", tmp_path)
    return tmp_path


def test_a_checkout_is_named_by_its_commit(checkout: Path) -> None:
    commit = git(checkout, "log", "-1", "--format=%h of %cs")
    (checkout / "results").write_text("not of the program")
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"connlab, commit {commit}\n")


def test_a_repository_of_the_environment_is_not_asked(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = version.version()
    other = tmp_path_factory.mktemp("other")
    git(other, "init", "-q")
    git(other, "commit", "-q", "--allow-empty", "-m", "Another", "--date", "2025-01-31T12:00:00Z")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert version.version() == said


def test_changes_are_said(checkout: Path) -> None:
    (checkout / "file").write_text("two")
    assert version.version().endswith(", with changes")


@pytest.mark.parametrize("place", ["plain", "inside another", "no git"])
def test_elsewhere_the_commit_is_unknown(
    checkout: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    if place == "no git":
        monkeypatch.setenv("PATH", "/nonexistent")
    else:
        folder = tmp_path_factory.mktemp("plain") if place == "plain" else checkout / "below"
        folder.mkdir(exist_ok=True)
        monkeypatch.setattr(version, "ROOT", folder)
    assert version.version() == "connlab, commit unknown"
