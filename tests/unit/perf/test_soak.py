"""Verdicts of ``make soak``, and that its lab is always removed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.errors import InputError, LabError
from bench.perf import ownlab, soak
from bench.perf.ownlab import OwnLab
from bench.perf.residue import Residue
from bench.results.format import AgentsMemory, MemoryPoint


def memory(server: float | None, client: float | None) -> AgentsMemory:
    return AgentsMemory(
        points=[
            MemoryPoint(t=30, server_kib=20_000, client_kib=30_000),
            MemoryPoint(t=60, server_kib=20_010, client_kib=29_990),
        ],
        server_kib_per_minute=server,
        client_kib_per_minute=client,
    )


def test_memory_that_shrinks_or_hardly_grows_is_flat() -> None:
    assert soak.flat(memory(soak.FLAT_KIB, -5000.0)) == [
        "PASS: server agents' memory 20,000 KiB at the start, 20,010 KiB at the end: +128.0 KiB a "
        "minute, flat up to +128.0",
        "PASS: client agents' memory 30,000 KiB at the start, 29,990 KiB at the end: -5,000.0 KiB "
        "a minute, flat up to +128.0",
    ]


def test_memory_that_grows_or_was_not_looked_at_often_enough_is_not_flat() -> None:
    lines = soak.flat(memory(soak.FLAT_KIB + 0.1, None))
    assert [line.partition(":")[0] for line in lines] == ["FAIL", "FAIL"]
    assert lines[1] == "FAIL: client agents' memory: hold too short for a slope"


def test_what_has_come_is_named_and_what_has_gone_is_not() -> None:
    before = Residue(("a", "b"), ("pipe", "pipe"), ("1",), (), ())
    after = Residue(("a", "c"), ("pipe", "pipe", "socket"), (), ("/tmp/connlab.x",), ("server1:7",))
    assert after.gained(before) == [
        "descriptors: 2 before and 3 after: socket",
        "directories: 0 before and 1 after: /tmp/connlab.x",
        "agents: 0 before and 1 after: server1:7",
    ]
    assert before.gained(before) == []
    assert str(before) == "2 threads, 2 descriptors, 1 children, 0 directories, 0 agents"


class Plays:
    """Playbooks that end as they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **ends: Any) -> None:
        self.played: list[str] = []
        self._ends = ends
        monkeypatch.setattr(ownlab, "OWNERS", tmp_path)
        monkeypatch.setattr(ownlab.subprocess, "run", self._run)
        monkeypatch.setattr(ownlab.inventory, "load", lambda sources, words: words)

    def _run(self, words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        book = Path(words[1]).stem
        self.played.append(book)
        assert words[2:] == ["-e", "lab_name=soak", "-e", "lab_mgmt_prefix=p", "-e", "size=3"]
        end = self._ends.get(book, 0)
        if isinstance(end, BaseException):
            raise end
        return subprocess.CompletedProcess(words, end)


LAB = "soak", "p", {"size": 3}
ALL = ["create", "tune", "revert", "destroy"]


def test_a_lab_is_built_for_a_while(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plays = Plays(monkeypatch, tmp_path)
    with OwnLab(*LAB) as settings:
        assert settings == ["lab_name=soak", "lab_mgmt_prefix=p", "size=3"]
        assert plays.played == ALL[:2]
    assert plays.played == ALL


@pytest.mark.parametrize("book", ["create", "tune"])
@pytest.mark.parametrize("end", [2, KeyboardInterrupt(), subprocess.TimeoutExpired("x", 1)])
def test_one_that_does_not_come_up_is_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, book: str, end: Any
) -> None:
    plays = Plays(monkeypatch, tmp_path, **{book: end})
    with pytest.raises((LabError, KeyboardInterrupt)), OwnLab(*LAB):
        pytest.fail("it is not up")
    assert plays.played == [*ALL[: ALL.index(book) + 1], "revert", "destroy"]


def test_it_is_destroyed_although_it_cannot_be_reverted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plays = Plays(monkeypatch, tmp_path, revert=2)
    with (
        pytest.raises(LabError, match=r"^lab soak: not removed; try again: make down LAB=soak$"),
        OwnLab(*LAB),
    ):
        pass
    assert plays.played == ALL


def test_one_that_is_up_already_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plays = Plays(monkeypatch, tmp_path)
    (tmp_path / "soak.owner").touch()
    with pytest.raises(InputError, match=r"^lab: soak is up already, expected none of that name"):
        OwnLab(*LAB).__enter__()
    assert plays.played == []


@pytest.mark.parametrize("words", [["--connections", "999"], ["--seconds", "0"], ["--hosts", "3"]])
def test_bad_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        soak.main(words)
    assert ended.value.code == 2
