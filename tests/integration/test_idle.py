"""Playbooks that change hosts: refused under a run on any of them, whoever does not answer."""

import fcntl
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
NAME = "connlab-run.0123456789abcdef.lock"
ABOUT = {"who": "ann@desk\u202e", "run": "R", "since": "2026-11-29T19:15:00Z", "boot_ns": 1}
Play = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Run a playbook on three hosts, one of which does not answer, after the check."""
    for name in ("free", "locked"):
        (tmp_path / name).mkdir()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    (tmp_path / "hosts.yml").write_text(
        "servers:\n  hosts:\n"
        f"    a: {{ansible_connection: local, idle_directories: [{tmp_path}/free]}}\n"
        f"    b: {{ansible_connection: local, idle_directories: [{tmp_path}/locked]}}\n"
        f"    c: {{ansible_host: 127.0.0.1, ansible_port: {port}}}\n"
        f"  vars: {{ansible_python_interpreter: {sys.executable}, lab_substrate: remote}}\n"
        "underlay:\n  hosts: {localhost: {ansible_connection: local}}\n"
    )
    (tmp_path / "change.yml").write_text(
        f"- import_playbook: {TOP}/playbooks/idle.yml\n"
        "- hosts: localhost\n  gather_facts: false\n  tasks:\n"
        f"    - copy: {{content: x, dest: {tmp_path}/changed}}\n"
    )

    plain = ("-e", "ansible_become=false")

    def run(*words: str, path: Path = Path("/nonexistent")) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ansible-playbook", "-i", "hosts.yml", "change.yml", *plain, *words],
            cwd=tmp_path,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(TOP / "ansible.cfg"),
                "LC_ALL": "C.UTF-8",
                "PATH": f"{path}:{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def held(tmp_path: Path, play: Play) -> Iterator[None]:
    path = tmp_path / "locked" / NAME
    path.write_text(json.dumps(ABOUT) + "\n")
    number = os.open(path, os.O_RDONLY)
    fcntl.flock(number, fcntl.LOCK_SH)
    yield
    os.close(number)


def test_a_run_on_one_host_keeps_all_from_being_changed(
    play: Play, held: None, tmp_path: Path
) -> None:
    done = play()
    said = " ".join(done.stdout.split() + done.stderr.split())
    assert done.returncode != 0
    assert "host b: a run holds it: ann@desk?, R, since 2026-11-29T19:15:00Z: wait" in said, said
    assert not (tmp_path / "changed").exists()


def test_a_run_is_passed_over_by_force_and_named(play: Play, held: None, tmp_path: Path) -> None:
    done = play("-e", "lab_force=true")
    said = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "host b: a run holds it: ann@desk?, R, since 2026-11-29T19:15:00Z: continuing" in said
    assert (tmp_path / "changed").exists()


LIES = {
    "nothing": "echo nothing",
    "an empty line": "echo",
    "a number": "echo 7",
    "null": "echo null",
    "an empty text": "echo '\"\"'",
    "an empty mapping": "echo '{}'",
    "a mapping": "echo '{\"who\": 1}'",
    "a list of numbers": "echo '[7]'",
    "a list of lists": "echo '[[]]'",
    "half a holder": 'echo \'[{"who": "x"}]\'',
    "other types": 'echo \'[{"who": {}, "run": [], "since": 1}]\'',
    "more than an answer": "echo '[]'; echo '[]'",
    "a failure": "echo '[]'; exit 1",
}


def lying(folder: Path, script: str) -> Path:
    """A Python that answers so."""
    (folder / "python3").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "python3").chmod(0o755)
    return folder


@pytest.mark.parametrize("lie", LIES)
def test_a_host_that_answers_nonsense_is_refused_and_named(
    play: Play, tmp_path: Path, lie: str
) -> None:
    done = play("-e", "idle_directories=[]", path=lying(tmp_path, LIES[lie]))
    said = " ".join(done.stdout.split() + done.stderr.split())
    assert done.returncode != 0, done.stdout + done.stderr
    unknown = "could not be asked for a run in progress: .*: check the host"
    line = rf"host a: ({unknown}|a run holds it: .*),"
    assert re.search(rf"{line} or continue anyway: -e lab_force=true", said), said
    assert not (tmp_path / "changed").exists()


def test_a_host_that_answers_nonsense_is_passed_over_by_force(play: Play, tmp_path: Path) -> None:
    path = lying(tmp_path, LIES["nothing"])
    done = play("-e", "idle_directories=[]", "-e", "lab_force=true", path=path)
    said = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "host a: could not be asked for a run in progress: " in said
    assert ": continuing, because lab_force is true" in said
    assert (tmp_path / "changed").exists()


def test_a_host_that_does_not_answer_holds_nobody_up(play: Play, tmp_path: Path) -> None:
    (tmp_path / "locked" / NAME).write_text(json.dumps(ABOUT))  # its run has ended
    done = play()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "UNREACHABLE" in done.stdout + done.stderr
    assert (tmp_path / "changed").exists()
    assert not (tmp_path / "locked" / NAME).exists()
