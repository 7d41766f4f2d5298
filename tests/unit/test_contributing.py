"""CONTRIBUTING.md names files, and what is in them, that there are."""

from __future__ import annotations

import re
from pathlib import Path

from bench.claims import register

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_path_is_there() -> None:
    named = set(re.findall(r"`([\w.-]+/[\w./-]*)`|\]\(([\w./-]+)", TEXT))
    paths = {one or other for one, other in named} - {"raw/", "library/"}  # in a run, in a role
    assert len(paths) > 50
    assert {path for path in paths if not (ROOT / path).exists()} == {
        "defaults/main.yml",
        "meta/argument_specs.yml",
        "meta/main.yml",
        "tasks/main.yml",
        "tasks/probe.yml",
        "tasks/revert.yml",
        "tasks/validate.yml",
    }


def test_every_name_is_in_its_file() -> None:
    named = re.findall(r"`(\w+)`,? (?:of|in)\s+`([\w/]+\.py)`", TEXT)
    named += [(name, path) for path, name in re.findall(r"`([\w/]+\.py)`: `(\w+)`", TEXT)]
    assert len(named) > 10
    for name, path in named:
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8")), (name, path)


def test_every_command_names_tests_and_claims_that_there_are() -> None:
    for path in re.findall(r"`pytest (\S+?)[`\s]", TEXT):
        assert (ROOT / path).exists(), path
    test, name = re.findall(r"`pytest (\S+) -k (\w+)`", TEXT)[0]
    assert f"def {name}(" in (ROOT / test).read_text(encoding="utf-8")
    for scenario in re.findall(r"(\w+)`", TEXT.partition("molecule test -s")[2].split(")")[0]):
        assert (ROOT / "molecule" / scenario / "molecule.yml").is_file(), scenario
    claims = re.findall(r'claims run ([\w-]+)|"claims": \["([\w-]+)"\]', TEXT)
    assert claims and {one or other for one, other in claims} <= set(register.CLAIMS)
