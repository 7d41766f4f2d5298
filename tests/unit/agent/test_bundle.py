"""The agent as one file: the same every time, and quick where its byte code fits."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bench.agent import bundle

ROOT = Path(__file__).resolve().parents[3]


def test_the_bundle_is_the_same_every_time_and_has_only_what_runs_on_hosts():
    first, second = bundle.build(), bundle.build()
    assert first == second
    assert hashlib.sha256(first.data).hexdigest() == first.sha256
    names = set(zipfile.ZipFile(io.BytesIO(first.data)).namelist())
    assert {"__main__.py", "bench/wire.py", "bench/agent/main.py"} <= names
    assert not [name for name in names if "bundle" in name or not name.endswith((".py", ".pyc"))]
    assert not [name for name in names if "trials" in name]
    more = zipfile.ZipFile(io.BytesIO(bundle.build(trials=True).data)).namelist()
    assert names < set(more) and "bench/agent/trials/guard.py" in more


def test_another_process_packs_the_same_bytes():
    code = "from bench.agent import bundle; print(bundle.build(trials=True).sha256)"
    words = [sys.executable, "-c", code]
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            words, env=env, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.strip() == bundle.build(trials=True).sha256


def test_without_a_format_for_the_byte_code_there_are_the_sources(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dumps(*_: object) -> bytes:
        raise ValueError("unmarshallable object")

    bundle._compiled.cache_clear()
    monkeypatch.setattr(bundle.marshal, "dumps", dumps)
    try:
        names = zipfile.ZipFile(io.BytesIO(bundle.build().data)).namelist()
    finally:
        bundle._compiled.cache_clear()
    assert "bench/agent/main.py" in names
    assert not [name for name in names if name.endswith(".pyc")]


@pytest.mark.parametrize("python", ["same", "other"])
def test_byte_code_is_for_the_same_python_alone_and_the_source_for_any(
    tmp_path: Path, python: str
) -> None:
    """The source says one thing, its byte code another: which one is run?"""
    entry = "import bench.wire; print(bench.wire.WHICH)"
    code = bundle._compiled("bench/wire.py", b"WHICH = 'byte code'")
    if python == "other":
        code = bytes([code[0] ^ 1]) + code[1:]
    pyz = tmp_path / "agent.pyz"
    with zipfile.ZipFile(pyz, "w") as archive:
        archive.writestr("__main__.py", entry)
        archive.writestr("bench/__init__.py", "")
        archive.writestr("bench/wire.py", "WHICH = 'source'")
        archive.writestr("bench/wire.pyc", code)
    done = subprocess.run(
        [sys.executable, pyz], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == ("byte code\n" if python == "same" else "source\n")
