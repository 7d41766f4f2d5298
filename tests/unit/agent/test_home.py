"""An agent removes what it was pushed as, and nothing that only looks like it."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import bench
from bench import wire
from bench.agent import home
from bench.hosts import transport

PATTERN = r"connlab\.[A-Za-z0-9"


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="connlab.", suffix="00", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def leave(path: Path | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "run", "{}"])
    home.leave()


def test_what_was_pushed_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "agent.pyz").touch()
    leave(folder / "agent.pyz", monkeypatch)
    assert not folder.exists()
    leave(folder / "agent.pyz", monkeypatch)  # and nothing is said if it is gone


@pytest.mark.parametrize("other", ["notes", "agent.pyz.old", ".hidden"])
def test_a_directory_with_something_else_stays_whole(
    folder: Path, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("agent.pyz", other):
        (folder / name).touch()
    leave(folder / "agent.pyz", monkeypatch)
    assert sorted(os.listdir(folder)) == sorted(["agent.pyz", other])


@pytest.mark.parametrize("name", ["agent.py", "agent.pyz~", "other"])
def test_another_name_stays(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / name).touch()
    leave(folder / name, monkeypatch)
    assert os.listdir(folder) == [name]


def test_another_root_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tmp" / "connlab.abcdefghij"
    folder.mkdir(parents=True)
    (folder / "agent.pyz").touch()
    leave(folder / "agent.pyz", monkeypatch)
    monkeypatch.chdir(tmp_path)
    leave("tmp/connlab.abcdefghij/agent.pyz", monkeypatch)
    assert os.listdir(folder) == ["agent.pyz"]


def test_a_link_to_a_directory_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "agent.pyz").touch()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    try:
        leave(folder / "agent.pyz", monkeypatch)
        assert os.listdir(tmp_path) == ["agent.pyz"]
    finally:
        folder.unlink()


def test_what_a_push_makes_has_such_a_path() -> None:
    for letters in ("abcdefghij", "ABCDEFGHIJ", "0123456789"):
        path = f"{transport.FOLDER}{letters}/agent.pyz"
        pushed = re.fullmatch(wire.PUSHED, path)
        assert pushed and pushed["folder"] == os.path.dirname(path)


def test_the_pattern_is_said_once() -> None:
    sources = Path(bench.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if PATTERN in path.read_text()] == ["wire.py"]
