import json
from pathlib import Path

import pytest
from tune_loader import load

record_module = load("lab_common", "module_utils", "connlab_record")


def test_a_file_found_comes_back_and_its_text_is_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "a.conf"
    path.write_text("first\n")
    record = record_module.empty_record("r")
    record_module.place_files(record, {str(path): "second\n"}, write=True)
    record_module.place_files(record, {str(path): "third\n"}, write=True)
    assert record["files"] == {str(path): "first\n"}
    assert path.read_text() == "third\n"
    diffs = record_module.restore_files(record, write=True)
    assert [(d["before"], d["after"]) for d in diffs] == [("third\n", "first\n")]
    assert path.read_text() == "first\n"
    assert record_module.restore_files(record, write=True) == []


def test_a_file_and_directory_that_were_not_there_go_again(tmp_path: Path) -> None:
    path = tmp_path / "service.d" / "deeper" / "a.conf"
    record = record_module.empty_record("r")
    record_module.place_files(record, {str(path): "x\n"}, write=True)
    assert path.stat().st_mode & 0o777 == 0o644
    record_module.restore_files(record, write=True)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_found_empty_stays(tmp_path: Path) -> None:
    path = tmp_path / "limits.d" / "a.conf"
    path.parent.mkdir()
    record = record_module.empty_record("r")
    record_module.place_files(record, {str(path): "x\n"}, write=True)
    record_module.restore_files(record, write=True)
    assert list(tmp_path.iterdir()) == [path.parent]


def test_a_file_no_longer_wanted_goes_back_to_what_was_found(tmp_path: Path) -> None:
    path = tmp_path / "a.conf"
    record = record_module.empty_record("r")
    record_module.place_files(record, {str(path): "x\n"}, write=True)
    record_module.place_files(record, {}, write=True)
    assert not path.exists()


def test_check_mode_tells_but_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "d" / "a.conf"
    record = record_module.empty_record("r")
    diffs = record_module.place_files(record, {str(path): "x\n"}, write=False)
    assert diffs[0]["after"] == "x\n"
    assert list(tmp_path.iterdir()) == []


def test_a_record_survives_and_is_written_only_when_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "state" / "r.json"
    record = record_module.empty_record("r")
    record["settings"]["k"] = {"found": "1", "set": "2", "where": "host"}
    assert record_module.save_record(path, record)
    assert not record_module.save_record(path, record)
    assert record_module.load_record(path, "r") == record
    assert path.stat().st_mode & 0o444 == 0o444
    record_module.remove_record(path)
    assert not path.parent.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"role": "another"})])
def test_a_broken_record_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"r\.json"):
        record_module.load_record(path, "r")


def test_an_interrupted_write_leaves_the_old_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="no space"):
        record_module.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
