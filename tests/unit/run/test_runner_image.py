"""The manifest of a lab's image, and records of it that are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.run import runner


def test_the_manifest_is_kept(tmp_path: Path) -> None:
    (tmp_path / "lab.json").write_text(json.dumps({"image": str(tmp_path)}))
    (tmp_path / "manifest.json").write_text('{"hash": "3f2a"}')
    assert runner._image(tmp_path) == {"hash": "3f2a"}
    assert runner._image(None) == runner._image(tmp_path / "none") == {}


@pytest.mark.parametrize("lab", ["", "{", "[]", "{}", '{"image": 5}', '{"image": "/nowhere"}'])
def test_a_damaged_record_costs_no_run(tmp_path: Path, lab: str) -> None:
    (tmp_path / "lab.json").write_text(lab)
    assert str(runner._image(tmp_path)["unreadable"]).startswith("/")


@pytest.mark.parametrize("manifest", [b"\xff", b"[1]", b"5", b""])
def test_a_damaged_manifest_costs_no_run(tmp_path: Path, manifest: bytes) -> None:
    (tmp_path / "lab.json").write_text(json.dumps({"image": str(tmp_path)}))
    (tmp_path / "manifest.json").write_bytes(manifest)
    said = runner._image(tmp_path)["unreadable"]
    assert said.startswith(f"{tmp_path}/manifest.json: ")
