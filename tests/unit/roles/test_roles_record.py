"""A role's record that is damaged, the lock under which it is written, and what modules say."""

import fcntl
import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from hypothesis import given
from hypothesis import strategies as st
from role_beds import alias, limits, nat, proxy, proxy_routes, record_module, sysctl

ROLES = {
    "tune_sysctl": sysctl,
    "tune_limits": limits,
    "alias_ips": alias,
    "nat_router": nat,
    "reverse_proxy": proxy,
    "reverse_proxy_routes": proxy_routes,
}
PRESENT: dict[str, dict[str, Any]] = {
    "tune_sysctl": {},
    "tune_limits": {"nofile": 1, "wanted": 1},
    "alias_ips": {"interface": "lo"},
    "nat_router": {"interface": "lo"},
    "reverse_proxy": {"config": "/nowhere", "processes": 1, "maxconn": 1},
    "reverse_proxy_routes": {},
}
SUM = "0" * 64
JUNK: list[tuple[str, Any, str]] = [
    ("settings", [], "settings: got a list, expected an object"),
    ("settings", {"a": 1}, "settings.a: got the number 1, expected an object"),
    (
        "settings",
        {"a": {"found": 5}},
        "settings.a.found: got the number 5, expected a text or null",
    ),
    ("settings", {"a": {"set": []}}, "settings.a.set: got a list, expected a text or null"),
    ("settings", {"a": {"earlier": "x"}}, "settings.a.earlier: got the text x, expected a list"),
    ("since", {"a": 1}, "settings.a: missing, expected it, since `since` has it"),
    ("since", {"a": "1"}, "since.a: got the text 1, expected a whole number above 0"),
    ("since", {"a": True}, "since.a: got true, expected a whole number above 0"),
    ("since", {"a": 1.5}, "since.a: got the number 1.5, expected a whole number above 0"),
    ("since", None, "since: got null, expected an object"),
    ("files", "x", "files: got the text x, expected an object"),
    ("files", {"/etc/a": 7}, "files./etc/a: got the number 7, expected a text or null"),
    ("files", {"etc/a": "x"}, "files: got the text etc/a, expected an absolute path"),
    ("files", {"/etc/../a": "x"}, "files: got the text /etc/../a, expected an absolute path"),
    ("placed", {"/a": "x"}, "placed./a: got the text x, expected a list"),
    ("placed", {"/a": [SUM, "x"]}, "placed./a[1]: got the text x, expected a SHA-256"),
    ("directories", {}, "directories: got an object, expected a list"),
    ("directories", ["."], "directories[0]: got the text ., expected an absolute path"),
    ("reported", {"a": None}, "reported.a: got null, expected a text"),
    ("kept", "x", "kept: got the text x, expected a list"),
    ("boot_id", 7, "boot_id: got the number 7, expected a text"),
    ("format", 3, "format: got the number 3, expected a number from 1 to 2"),
    ("format", "2", "format: got the text 2, expected a number from 1 to 2"),
    ("a\x1b\n", [[[[[[[[[[]]]]]]]]]], "a??: nested deeper than 8 levels"),
    ("settings", {"a\nb": 1}, "settings.a?b: got the number 1, expected an object"),
]
OF_A_ROLE: list[tuple[str, str, Any, str]] = [
    ("alias_ips", "added", ["x"], "added[0]: got the text x, expected an IP address"),
    ("alias_ips", "added_routes", [3], "added_routes[0]: got the number 3, expected an IP network"),
    ("alias_ips", "interface", "a b", "interface: got the text a b, expected a name without"),
    ("nat_router", "unit", "../x", "unit: got the text ../x, expected a name without slashes"),
    ("nat_router", "translation", [], "translation: got a list, expected an object"),
    ("nat_router", "translation", {"ports": 1}, "translation.interface: missing, expected it"),
    ("nat_router", "routes", {"a\nb": "c"}, "routes: got the text a?b, expected words on one line"),
    ("reverse_proxy", "unit", 1, "unit: got the number 1, expected a name without slashes"),
    ("reverse_proxy", "runtime", "", "runtime: got an empty text, expected a name"),
    ("reverse_proxy", "runtime", "..", "runtime: got the text .., expected a name"),
    ("reverse_proxy", "runtime", "a/b", "runtime: got the text a/b, expected a name"),
    ("reverse_proxy", "pending", "no", "pending: got the text no, expected true or false"),
    ("reverse_proxy_routes", "rules", ["a\nb"], "rules[0]: got the text a?b, expected words on"),
    ("reverse_proxy_routes", "keys", [[1]], "keys[0]: got a list, expected a list of 2"),
]


@pytest.mark.parametrize(("field", "value", "line"), JUNK)
def test_a_damaged_field_is_named_with_what_was_expected(
    tmp_path: Path, field: str, value: Any, line: str
) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"role": "r", field: value}))
    with pytest.raises(ValueError, match=r".") as caught:
        record_module.load_record(path, "r")
    assert str(caught.value) == f"{path}: {line}: move it away by hand"


@pytest.mark.parametrize(("role", "field", "value", "line"), OF_A_ROLE)
def test_a_damaged_field_of_a_role_is_named(
    tmp_path: Path, role: str, field: str, value: Any, line: str
) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"role": role, field: value}))
    with pytest.raises(ValueError, match=r".") as caught:
        record_module.load_record(path, role)
    assert str(caught.value).startswith(f"{path}: {line}")
    assert str(caught.value).endswith(": move it away by hand")


def large(path: Path) -> None:
    path.write_bytes(b" " * (10 * 2**20))


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "large": (large, "10485760 bytes, expected a record of at most 4194304"),
    "deep": (deep, "nested too deep, expected a role's record"),
    "binary": (lambda path: path.write_bytes(b"\xff\xfe"), "not UTF-8 at byte 0, expected JSON"),
    "text": (lambda path: path.write_text("{"), "not JSON (Expecting property name"),
    "list": (lambda path: path.write_text("[]"), "got a list, expected the record of the role"),
    "number": (lambda path: path.write_text("7"), "got the number 7, expected the record of"),
    "digits": (lambda path: path.write_text("9" * 5000), "Exceeds the limit"),
    "directory": (Path.mkdir, "not a plain file, expected a record"),
    "pipe": (os.mkfifo, "not a plain file, expected a record"),
    "role": (lambda path: path.write_text('{"role": "x"}'), "role: got the text x, expected the"),
    "shape": (
        lambda path: path.write_text(json.dumps({"role": path.stem, "files": "x"})),
        "files: got the text x, expected an object",
    ),
}


@pytest.mark.parametrize("state", ["present", "absent"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("role", ROLES)
def test_every_role_says_so_in_one_line_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], role: str, damage: str, state: str
) -> None:
    path = tmp_path / "state" / f"{role}.json"
    path.parent.mkdir()
    damaged, line = DAMAGES[damage]
    damaged(path)
    before = sorted(tmp_path.rglob("*")), path.is_file() and path.read_bytes()
    params = {"state": state, "record": str(path), **(PRESENT[role] if state == "present" else {})}
    with patch_module_args(params), pytest.raises(SystemExit):
        ROLES[role].main()
    answer = json.loads(capsys.readouterr().out)
    assert answer["failed"]
    assert answer["msg"].startswith(f"{path}: {line}")
    assert "\n" not in answer["msg"]
    assert (sorted(tmp_path.rglob("*")), path.is_file() and path.read_bytes()) == before


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(ROLES)), st.sampled_from(sorted(record_module._FIELDS)), anything)
def test_no_field_gets_past_the_check_in_a_shape_that_nobody_expects(
    role: str, field: str, value: Any
) -> None:
    """Either it is refused in one line, or the functions that read it do."""
    record = {**record_module.empty_record(role), field: value}
    try:
        record_module.check_record(record, role)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    record_module.changed_files(record, {})
    record_module.restore_files(record, write=False)
    record_module.next_order([record])
    assert all(isinstance(record["settings"][key]["found"], str) for key in record["since"])


def test_a_record_too_large_to_be_read_again_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    record = {**record_module.empty_record("r"), "files": {"/a": "x" * record_module.LARGEST}}
    with pytest.raises(ValueError, match=r"r\.json: would be \d+ bytes, expected at most 4194304"):
        record_module.save_record(path, record)
    assert not path.exists()


def test_an_order_is_above_all_that_records_say() -> None:
    assert record_module.next_order([{"since": {"a": 2**62}}]) == 2**62 + 1
    first = record_module.next_order([])
    assert 0 < first <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert record_module.next_order([]) >= first


# The lock.


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("state", ["present", "absent"])
def test_every_role_waits_for_the_lock_and_gives_up_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    role: str,
    state: str,
) -> None:
    monkeypatch.setattr(record_module, "LOCK_SECONDS", 0.05)
    path = tmp_path / f"{role}.json"
    path.write_text(json.dumps({"role": role}))
    params = {"state": state, "record": str(path), **(PRESENT[role] if state == "present" else {})}
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with patch_module_args(params), pytest.raises(SystemExit):
            ROLES[role].main()
    finally:
        os.close(handle)
    assert json.loads(capsys.readouterr().out)["msg"] == (
        f"{tmp_path}: locked for 0 s by another tune or revert on this host, expected it to end: "
        "try again"
    )
    assert json.loads(path.read_text()) == {"role": role}


def test_all_roles_of_a_host_share_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    state = record_module.STATE
    assert state == Path("/var/lib/connlab")
    for path in ("tune_sysctl.json", "provoke/tune_limits.json", "lab/tune_sysctl.json"):
        assert record_module.lock_directory(state / path) == state
    assert record_module.lock_directory("/srv/x/tune_sysctl.json") == Path("/srv/x")


def test_only_one_at_a_time_has_the_lock_even_as_its_directory_comes_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_module, "LOCK_PAUSE", 0.0005)
    directory, inside, most = tmp_path / "state", [0], [0]

    def work() -> None:
        for _ in range(20):
            with record_module.locked(directory, 20):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(random.random() / 5000)
                inside[0] -= 1

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert most[0] == 1
    assert not directory.exists()


def test_a_revert_where_a_role_has_never_been_makes_no_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "state" / "tune_sysctl.json"
    with patch_module_args({"state": "absent", "record": str(path)}), pytest.raises(SystemExit):
        sysctl.main()
    assert not json.loads(capsys.readouterr().out)["changed"]
    assert not path.parent.exists()


def test_a_record_killed_in_its_first_write_leaves_nothing_after_a_revert(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "state" / "tune_sysctl.json"
    path.parent.mkdir()
    (path.parent / ".connlab-tune_sysctl.json").write_text("{")
    with patch_module_args({"state": "absent", "record": str(path)}), pytest.raises(SystemExit):
        sysctl.main()
    assert not json.loads(capsys.readouterr().out)["changed"]
    assert not path.parent.exists()


def test_a_module_warns_of_what_the_revert_before_has_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    # Where the controller's part of ansible is loaded as well, warnings go to its display.
    monkeypatch.setattr(limits.AnsibleModule, "warn", lambda module, text: warned.append(text))
    path = tmp_path / "tune_limits.json"
    record_module.save_record(path, {**record_module.empty_record("tune_limits"), "kept": ["x: y"]})
    with patch_module_args({"state": "absent", "record": str(path)}), pytest.raises(SystemExit):
        limits.main()
    json.loads(capsys.readouterr().out)
    assert [text for text in warned if "x: y" in text]
    assert not path.exists()


def test_a_directory_removed_as_its_lock_is_taken_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for a holder's lock gets it on a directory that the holder has removed."""
    directory = tmp_path / "state"
    real = fcntl.flock

    def flock(handle: int, how: int) -> None:
        directory.rmdir()
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert record_module._try_lock(directory) is None
    monkeypatch.setattr(fcntl, "flock", real)
    with record_module.locked(directory, 0):
        assert record_module._try_lock(directory) is None


def test_a_directory_removed_as_it_is_made_is_tried_again_and_a_file_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Path.mkdir() raises where the directory that it ran into is gone as it looks again."""
    directory = tmp_path / "state"
    directory.mkdir()
    real = Path.is_dir

    def is_dir(path: Path) -> bool:
        if path == directory:
            directory.rmdir()
            monkeypatch.setattr(Path, "is_dir", real)
        return real(path)

    monkeypatch.setattr(Path, "is_dir", is_dir)
    with record_module.locked(directory, 5):
        assert directory.exists()
    directory.write_text("")
    with (
        pytest.raises(FileExistsError, match=str(directory)),
        record_module.locked(directory, 5),
    ):
        raise AssertionError
