"""What an agent is started with, and what of it is refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.agent import bundle, options

LOCK = {"owner": "0123456789abcdef", "who": "ann@desk", "run": "a run"}


@pytest.mark.parametrize("mode", options.MODES)
@pytest.mark.parametrize("lock", [None, LOCK])
def test_what_a_controller_gives_is_taken(mode: str, lock: dict[str, str] | None) -> None:
    text = json.dumps({"silence_seconds": 20, "lock": lock})
    assert options.parse([mode, text]) == (mode, {"silence_seconds": 20.0, "lock": lock})


@pytest.mark.parametrize(
    "argv",
    [[], ["run"], ["run", "{}", "more"], ["Run", "{}"], ["", "{}"], ["trial", "run", "{}"]],
)
def test_other_arguments_are_refused(argv: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^arguments: got .* expected run or trial and options$"):
        options.parse(argv)


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ("{}", "silence_seconds: got None, expected 1 to 3600"),
        ("[]", "silence_seconds: got None, expected 1 to 3600"),
        ("7", "silence_seconds: got None, expected 1 to 3600"),
        ('{"silence_seconds": 0.9}', "silence_seconds: got 0.9, expected 1 to 3600"),
        ('{"silence_seconds": 3601}', "silence_seconds: got 3601, expected 1 to 3600"),
        ('{"silence_seconds": NaN}', "silence_seconds: got nan, expected 1 to 3600"),
        ('{"silence_seconds": Infinity}', "silence_seconds: got inf, expected 1 to 3600"),
        ('{"silence_seconds": true}', "silence_seconds: got True, expected 1 to 3600"),
        ('{"silence_seconds": "20"}', "silence_seconds: got '20', expected 1 to 3600"),
        ("", "options: got '', expected a JSON object"),
        ("{", "options: got '{', expected a JSON object"),
        ("[" * 100_000, f"options: got '{'[' * 80}', expected a JSON object"),
    ],
    ids=lambda text: text[:30],
)
def test_silence_that_cannot_be_meant(found: str, line: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        options.parse(["run", found])
    assert str(refused.value) == line


@pytest.mark.parametrize(
    "lock",
    [
        {},
        [],
        "x",
        0,
        False,
        {**LOCK, "more": "x"},
        {"owner": LOCK["owner"], "who": "ann"},
        {**LOCK, "who": 7},
        {**LOCK, "owner": "0123456789abcde"},
        {**LOCK, "owner": "0123456789ABCDEF"},
        {**LOCK, "owner": "../../etc/passwd"},
        {**LOCK, "owner": LOCK["owner"] + "\n"},
    ],
)
def test_a_lock_that_cannot_be_meant(lock: Any) -> None:
    with pytest.raises(ValueError, match=r"^lock: "):
        options.parse(["run", json.dumps({"silence_seconds": 20, "lock": lock})])


@settings(max_examples=50)
@given(st.text(max_size=50) | st.recursive(st.none() | st.integers(), st.lists).map(json.dumps))
def test_anything_else_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[a-z_]+: .*expected"):
        options.parse(["run", text])


def test_the_agent_says_it_and_ends(tmp_path: Path) -> None:
    pyz = tmp_path / "agent.pyz"
    pyz.write_bytes(bundle.build().data)
    words = [sys.executable, str(pyz), "run", '{"silence_seconds": 0}']
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "silence_seconds: got 0, expected 1 to 3600\n"
