"""What is written to disks: whole or not at all, inside its directory, as UTF-8."""

from __future__ import annotations

import ast
import contextlib
import errno
import os
import re
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import files

ROOT = Path(__file__).resolve().parents[2]
WRITERS = {"write_text", "write_bytes"}
READERS = {"read_text"}


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "{}/x", "a/b", ".hidden", "-rf", "a\0b", "a\nb", "x" * 254, "ü"],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    name = name.format(tmp_path)  # should it be followed after all, it stays among the tests
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match=r"^name .*: expected 1 to 253 of the characters A-Z"):
        files.write_inside(tmp_path / "in", (), {"ok": "", name: "x"})
    with pytest.raises(ValueError, match=r"^name "):
        files.write_inside(tmp_path / "in", ("a", name), {"ok": ""})
    with pytest.raises(ValueError, match=r"^name "):
        files.Lines(tmp_path / "in", (), name)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("linked", ["a", "a/b"])
def test_a_link_in_the_way_is_refused(tmp_path: Path, linked: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    if linked != "a":
        (tmp_path / "in" / "a").mkdir()
    (tmp_path / "in" / linked).symlink_to(tmp_path / "out")
    with pytest.raises(NotADirectoryError, match=f"'{Path(linked).name}'$"):
        files.write_inside(tmp_path / "in", ("a", "b"), {"file": "x"})
    with pytest.raises(NotADirectoryError, match=f"'{Path(linked).name}'$"):
        files.Lines(tmp_path / "in", ("a", "b"), "file")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_link_of_the_files_own_name_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "in" / "file").symlink_to(tmp_path / "kept")
    files.write_inside(tmp_path / "in", (), {"file": "new"})
    assert (tmp_path / "kept").read_text() == "kept"
    assert (tmp_path / "in" / "file").read_text() == "new"
    (tmp_path / "in" / "lines").symlink_to(tmp_path / "kept")
    with pytest.raises(FileExistsError, match=r"'lines'$"):
        files.Lines(tmp_path / "in", (), "lines")
    assert (tmp_path / "kept").read_text() == "kept"


def test_a_path_that_the_user_chose_is_written_through_links_and_into_devices(
    tmp_path: Path,
) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    files.write(tmp_path / "link", "µ \ud800")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == "µ ".encode() + b"\\ud800"
    os.mkfifo(tmp_path / "pipe")
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_text()))
    reader.start()
    files.write(tmp_path / "pipe", "through")
    reader.join(5)
    assert heard == ["through"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        files.write(tmp_path, "x")


TOO_LARGE = os.strerror(errno.EFBIG)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Files that may not grow above 4 KiB (setrlimit(2), RLIMIT_FSIZE).

    For the test's own lines alone: pytest's output may be a file too, and a large one by then.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_does_not_fit_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    files.write_inside(tmp_path, (), {"file": "old"})
    with limited():
        with pytest.raises(OSError, match=TOO_LARGE):
            files.write_inside(tmp_path, (), {"file": "x" * 5000})
        with pytest.raises(OSError, match=TOO_LARGE):
            files.write(tmp_path / "file", "x" * 5000)
        with pytest.raises(OSError, match=TOO_LARGE):
            files.Room(tmp_path, 5000)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_line_that_does_not_fit_is_taken_back(tmp_path: Path) -> None:
    with limited(), files.Lines(tmp_path, ("run",), "lines") as lines:
        for number in range(40):
            lines.write(f"{number:099}\n")
        for _ in range(2):
            with pytest.raises(OSError, match=TOO_LARGE):
                lines.write("y" * 99 + "\n")
    kept = (tmp_path / "run" / "lines").read_text()
    assert kept == "".join(f"{number:099}\n" for number in range(40))


def test_room_is_taken_and_leaves_nothing(tmp_path: Path) -> None:
    before = os.statvfs(tmp_path).f_bfree
    room = files.Room(tmp_path, 64 << 20)
    assert list(tmp_path.iterdir()) == []
    # Others write to this disk as well: half of it is enough to see.
    assert (before - os.statvfs(tmp_path).f_bfree) * os.statvfs(tmp_path).f_frsize > 32 << 20
    room.release()
    room.release()


def test_what_is_written_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, pathlib; from bench import files\n"
            "files.write_inside(pathlib.Path(sys.argv[1]), (), {'file': chr(181)})",
            str(tmp_path),
        ],
        check=True,
        cwd=ROOT,
        env={**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    assert (tmp_path / "file").read_bytes() == "µ".encode()


def calls(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_the_controller_writes_through_this_module_alone_and_names_every_encoding() -> None:
    paths = [path for path in (ROOT / "bench").rglob("*.py") if path.name != "files.py"]
    paths = [path for path in paths if "perf" not in path.parts]  # its files are its own, for once
    paths += (ROOT / "roles" / "bench_run").rglob("*.py")
    for path in paths:
        for call in calls(path):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            named = {one.arg for one in call.keywords}
            where = f"{path}:{call.lineno}: {name}"
            if name in READERS:
                assert "encoding" in named, where
            if "agent" not in path.parts:  # agents have files of their hosts to change
                assert name not in WRITERS, where
                texts = [one.value for one in call.args if isinstance(one, ast.Constant)]
                assert not (name == "open" and {"w", "x", "a", "wb", "xb", "ab"} & set(texts)), (
                    where
                )
            elif name == "open" and isinstance(call.func, ast.Name):
                modes = [one.value for one in call.args[1:] if isinstance(one, ast.Constant)]
                assert "encoding" in named or any("b" in str(mode) for mode in modes), where


def test_what_is_written_has_reached_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real = os.fsync, os.rename

    def fsync(number: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file"
        done.append(f"{kind} of {os.fstat(number).st_size}" if kind == "file" else kind)
        real[0](number)

    def rename(*names: str, **folders: int) -> None:
        done.append("rename")
        real[1](*names, **folders)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    files.write_inside(tmp_path, (), {"file": "12345"})
    assert done == ["file of 5", "rename", "folder"]
    done.clear()
    with files.Lines(tmp_path, (), "lines") as lines:
        lines.write("123\n")
    assert done == ["file of 4"]
