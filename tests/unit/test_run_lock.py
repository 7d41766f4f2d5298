"""Whose lock is on a host, told from files that anybody on the host may have made."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from tune_loader import ROLES, load

lock_module = load("../playbooks", "library", "connlab_run_lock")
NAME = "connlab-run.0123456789abcdef.lock"
ABOUT = {"who": "ann@desk", "run": "20261129T191500Z-million", "since": "2026-11-29T19:15:00Z"}
LINE = "ann@desk, 20261129T191500Z-million, since 2026-11-29T19:15:00Z"
UNKNOWN = "an unknown holder"


@pytest.fixture
def hold() -> Iterator[Callable[..., Path]]:
    """Make a lock's file and hold it as an agent does."""
    held: list[int] = []

    def held_with(path: Path, text: str | bytes) -> Path:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        held.append(os.open(path, os.O_RDONLY))
        fcntl.flock(held[-1], fcntl.LOCK_SH)
        return path

    yield held_with
    for number in held:
        os.close(number)


def holders(*directories: Path, tidy: bool = True) -> Any:
    return lock_module.holders(map(str, directories), tidy)


def test_a_held_lock_says_who_which_run_and_since_when(tmp_path: Path, hold: Any) -> None:
    hold(tmp_path / NAME, json.dumps(ABOUT) + "\n")
    assert holders(tmp_path) == [LINE]
    assert (tmp_path / NAME).exists()


def test_all_directories_are_looked_at_and_each_holder_is_named_once(
    tmp_path: Path, hold: Any
) -> None:
    for number, who in ((1, "ann@desk"), (2, "bob@desk"), (3, "ann@desk")):
        (tmp_path / str(number)).mkdir()
        hold(tmp_path / str(number) / NAME, json.dumps({**ABOUT, "who": who}))
    found = holders(*(tmp_path / name for name in ("1", "2", "3", "none")))
    assert found == [LINE, LINE.replace("ann", "bob")]


def test_a_file_that_nobody_holds_any_more_is_removed(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps(ABOUT))
    assert holders(tmp_path, tidy=False) == []
    assert (tmp_path / NAME).exists()
    assert holders(tmp_path) == []
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", '"x"', b"\xff\xfe", "[" * 4000, json.dumps({**ABOUT, "x": "y" * 4096})],
)
def test_a_held_lock_that_cannot_be_read_is_held_all_the_same(
    tmp_path: Path, hold: Any, text: Any
) -> None:
    hold(tmp_path / NAME, text)
    assert holders(tmp_path) == [UNKNOWN]


def test_what_a_file_says_is_cut_and_cannot_move_a_cursor(tmp_path: Path, hold: Any) -> None:
    about = {"who": "\x1b[2J\nann\u202e", "run": "x" * 1000, "since": {"a": 1}}
    hold(tmp_path / NAME, json.dumps(about))
    assert holders(tmp_path) == [f"?[2J?ann?, {'x' * 200}, since unknown"]


def test_what_is_no_plain_file_or_has_another_name_is_passed_by(tmp_path: Path, hold: Any) -> None:
    real = hold(tmp_path / "elsewhere", json.dumps(ABOUT))
    (tmp_path / NAME).symlink_to(real)
    os.mkfifo(tmp_path / NAME.replace("0", "1"))
    (tmp_path / NAME.replace("0", "2")).mkdir()
    for name in (NAME.upper(), NAME + ".x", NAME.replace("0", "g"), "x" + NAME):
        hold(tmp_path / name, json.dumps(ABOUT))
    before = sorted(tmp_path.iterdir())
    assert holders(tmp_path) == []
    assert sorted(tmp_path.iterdir()) == before


def test_the_module_changes_nothing_in_check_mode(
    tmp_path: Path, hold: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = tmp_path / NAME.replace("0", "1")
    stale.write_text("")
    hold(tmp_path / NAME, json.dumps(ABOUT))
    for check, left in ((True, True), (False, False)):
        params = {"directories": [str(tmp_path)], "_ansible_check_mode": check}
        with patch_module_args(params), pytest.raises(SystemExit):
            lock_module.main()
        answer = json.loads(capsys.readouterr().out)
        assert (answer["holders"], answer["changed"]) == ([LINE], False)
        assert stale.exists() is left


PLAYBOOKS = ROLES.parent / "playbooks"


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
