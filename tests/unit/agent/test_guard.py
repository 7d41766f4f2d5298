"""What a guard has changed goes back: the last first, and each whatever becomes of the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.agent.trials import guard, journal, locks

KEYS = ("net.ipv4.tcp_fin_timeout", "net.core.somaxconn")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Kernel parameters and journals that are files of the test's own."""
    monkeypatch.setattr(locks, "FOLDER", str(tmp_path))
    monkeypatch.setattr(journal, "FOLDER", str(tmp_path / "journals"))
    monkeypatch.setattr(journal, "RUN", str(tmp_path))
    monkeypatch.setattr(journal, "ROOT", os.geteuid())
    monkeypatch.setattr(journal, "sysctl_path", lambda key: str(tmp_path / key))
    for key in KEYS:
        (tmp_path / key).write_text("60\n")
    return tmp_path


def value(root: Path, key: str) -> str:
    return (root / key).read_text().strip()


def noted(root: Path) -> str:
    """What journals say at this moment."""
    return "".join(path.read_text() for path in (root / "journals").glob("*.journal"))


def test_what_was_changed_twice_goes_back_to_what_was_found_first(root: Path) -> None:
    settings = guard.Settings()
    assert settings.sysctl(KEYS[0], "7") == "60"
    assert settings.sysctl(KEYS[0], "8") == "7"
    assert settings.put_back() == []
    assert value(root, KEYS[0]) == "60"
    assert sorted(path.name for path in root.iterdir()) == sorted(KEYS)


def test_a_change_is_written_down_before_it_is_made(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def write(path: str, text: str) -> None:
        seen.append(noted(root))
        Path(path).write_text(f"{text}\n")

    monkeypatch.setattr(guard, "_write", write)
    settings = guard.Settings()
    settings.sysctl(KEYS[0], "7")
    assert KEYS[0] in seen[0] and '"60"' in seen[0]
    assert settings.put_back() == []


def test_one_that_cannot_be_put_back_is_told_and_keeps_no_other(root: Path) -> None:
    settings = guard.Settings()
    for key in KEYS:
        settings.sysctl(key, "7")
    (root / KEYS[1]).unlink()
    (root / KEYS[1]).mkdir()
    (told,) = settings.put_back()
    assert "Is a directory" in told and KEYS[1] in told
    assert value(root, KEYS[0]) == "60"
    assert settings.put_back() == []
    assert not list(root.glob("connlab-guard.*"))
    assert KEYS[1] in noted(root)  # for the next guard, or the revert
    (root / KEYS[1]).rmdir()
    (root / KEYS[1]).write_text("7\n")
    assert guard.Settings().heal() == []
    assert value(root, KEYS[1]) == "60"
    assert not noted(root)


def test_what_others_have_changed_since_is_kept(root: Path) -> None:
    settings = guard.Settings()
    settings.sysctl(KEYS[0], "7")
    (root / KEYS[0]).write_text("99\n")
    (told,) = settings.put_back()
    assert told.endswith("expected 7, as an experiment set it, found 99: kept")
    assert value(root, KEYS[0]) == "99"


def test_a_value_that_does_not_stick_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_write", lambda path, text: Path(path).write_text("9\n"))
    settings = guard.Settings()
    with pytest.raises(guard.Misuse, match=f"^sysctl {KEYS[0]}: got 9 after a write of 7$"):
        settings.sysctl(KEYS[0], "7")
    assert settings.put_back() == []
    assert value(root, KEYS[0]) == "60"


@pytest.mark.parametrize("text", ["7\n8", "\x00", "7\r", "ü"])
def test_a_value_is_one_line(root: Path, text: str) -> None:
    with pytest.raises(guard.Misuse, match="expected one line of ASCII"):
        guard.Settings().sysctl(KEYS[0], text)
    assert value(root, KEYS[0]) == "60"


@pytest.mark.parametrize("key", ["kernel.panic", "net.ipv4./etc", "net.ipv4", "fs.protected_fifos"])
def test_other_parameters_are_refused(root: Path, key: str) -> None:
    with pytest.raises(guard.Misuse, match=f"^sysctl: got {key}, expected a key of"):
        guard.Settings().sysctl(key, "1")


def test_a_file_that_is_there_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "LIMITS", f"{root}/")
    (root / "90-own.conf").write_text("own\n")
    settings = guard.Settings()
    with pytest.raises(FileExistsError, match=r"90-own\.conf"):
        settings.file(f"{root}/90-own.conf", "ours\n")
    settings.file(f"{root}/91-ours.conf", "ours\n")
    assert value(root, "91-ours.conf") == "ours"
    assert settings.put_back() == []
    assert value(root, "90-own.conf") == "own"
    assert not (root / "91-ours.conf").exists()


@pytest.mark.parametrize("name", ["../passwd", "sub/one.conf", "../limits.d/one.conf"])
def test_files_are_made_in_one_directory_alone(root: Path, name: str) -> None:
    with pytest.raises(
        guard.Misuse, match=r"^file: got .*, expected one in /etc/security/limits.d"
    ):
        guard.Settings().file(f"{journal.LIMITS}{name}", "")
    with pytest.raises(guard.Misuse, match=r"^file: got "):
        guard.Settings().file(f"{root}/one.conf", "")


@pytest.mark.parametrize("name", ["inet filter", "inet connlab_", "ip connlab_x;", "arp connlab_x"])
def test_tables_have_names_of_their_own(root: Path, name: str) -> None:
    with pytest.raises(guard.Misuse, match=r"^table: got .*, expected FAMILY connlab_NAME$"):
        guard.Settings().table(name, "")
