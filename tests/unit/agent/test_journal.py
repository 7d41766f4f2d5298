"""What guards that are gone have left, over files in a directory of the test's own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.agent.trials import journal
from bench.agent.trials.journal import Change, Damaged, Journal

KEY = "net.ipv4.tcp_fin_timeout"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Journals, limits.d, /run and /proc/sys, of the test's own."""
    for name in ("run", "limits.d", "sys"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(journal, "FOLDER", str(tmp_path / "journals"))
    monkeypatch.setattr(journal, "LIMITS", f"{tmp_path}/limits.d/")
    monkeypatch.setattr(journal, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(journal, "ROOT", os.geteuid())
    monkeypatch.setattr(journal, "sysctl_path", lambda key: f"{tmp_path}/sys/{key}")
    return tmp_path / "journals"


@pytest.fixture
def value(tmp_path: Path) -> Path:
    path = tmp_path / "sys" / KEY
    path.write_text("60\n")
    return path


@pytest.fixture
def limits(tmp_path: Path) -> Path:
    return tmp_path / "limits.d"


def left_behind(*changes: Change, **head: object) -> Path:
    """The journal of a guard that was killed."""
    made = Journal("a")
    for change in changes:
        made.note(change)
    path = Path(journal.FOLDER, f"{made.token}.journal")
    made.abandon()
    if head:
        rows = path.read_text().splitlines(True)
        rows[0] = json.dumps({**json.loads(rows[0]), **head}) + "\n"
        path.write_text("".join(rows))
    return path


def test_a_journal_is_there_from_the_first_change_until_it_is_closed(folder: Path) -> None:
    made = Journal("a")
    assert not folder.exists()
    made.note(Change("sysctl", KEY, "60", "7"))
    assert folder.stat().st_mode & 0o7777 == 0o700
    [path] = folder.iterdir()
    assert path.stat().st_mode & 0o7777 == 0o600
    head, [change] = journal.parse(path.name, path.read_bytes())
    assert (head["owner"], head["pid"]) == ("a", os.getpid())
    assert change._replace(at=0) == Change("sysctl", KEY, "60", "7")
    made.close()
    assert not folder.exists()


def test_a_change_is_on_disk_before_note_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(journal.os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    made = Journal()
    made.note(Change("sysctl", KEY, "60", "7"))
    made.note(Change("sysctl", KEY, "7", "9"))
    [path] = Path(journal.FOLDER).iterdir()
    assert synced[-1] == path.stat().st_size
    made.close()


def test_a_journal_that_is_held_is_left_alone(value: Path, folder: Path) -> None:
    made = Journal()
    made.note(Change("sysctl", KEY, "60", "7"))
    value.write_text("7\n")
    assert journal.heal() == ([], [], [])
    assert value.read_text() == "7\n" and len(list(folder.iterdir())) == 1
    made.abandon()
    assert journal.heal().healed == [f"sysctl {KEY}"]
    assert value.read_text() == "60\n" and not folder.exists()


def test_what_a_guard_notes_and_does_before_it_dies_goes_back(
    value: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Journal()
    made.note(Change("sysctl", KEY, "60", "7"))
    value.write_text("7\n")
    lock = journal.fcntl.flock

    def lock_late(number: int, kind: int) -> None:
        if made._number >= 0 and folder.stat().st_ino != os.fstat(number).st_ino:
            made.note(Change("sysctl", KEY, "7", "9"))
            value.write_text("9\n")
            made.abandon()
        lock(number, kind)

    monkeypatch.setattr(journal.fcntl, "flock", lock_late)
    assert journal.heal() == ([f"sysctl {KEY}"] * 2, [], [])
    assert value.read_text() == "60\n"


@pytest.mark.parametrize(
    ("now", "outcome"),
    [
        ("7\n", ([f"sysctl {KEY}"], [], [])),
        ("60\n", ([], [], [])),
        ("33\n", ([], [f"sysctl {KEY}: expected 7, as an experiment set it, found 33: kept"], [])),
    ],
)
def test_a_value_goes_back_only_from_what_the_guard_set(
    now: str, outcome: tuple[list[str], ...], value: Path, folder: Path
) -> None:
    left_behind(Change("sysctl", KEY, "60", "7"))
    value.write_text(now)
    assert journal.heal(write=False) == outcome
    assert value.read_text() == now and folder.exists()
    assert journal.heal() == outcome
    assert value.read_text() == ("60\n" if now == "7\n" else now)
    assert not folder.exists()
    assert journal.heal() == ([], [], [])


def test_tabs_and_blanks_are_no_difference(value: Path) -> None:
    left_behind(Change("sysctl", KEY, "1024\t65535", "2000 3000"))
    value.write_text("2000\t3000\n")
    journal.heal()
    assert value.read_text() == "1024\t65535\n"


@pytest.mark.parametrize("first", [0, 1])
def test_changes_go_back_in_the_reverse_of_their_order(first: int, value: Path) -> None:
    outer, inner = Journal(), Journal()
    outer.note(Change("sysctl", KEY, "60", "7"))
    inner.note(Change("sysctl", KEY, "7", "9"))
    inner.note(Change("sysctl", KEY, "9", "11"))
    value.write_text("11\n")
    both = [outer, inner]
    both[first].abandon()
    journal.heal()  # one lives still: what the outer one found waits for the inner one
    assert value.read_text() == ("11\n" if first == 0 else "7\n")
    both[1 - first].abandon()
    journal.heal()
    assert value.read_text() == "60\n"
    assert not Path(journal.FOLDER).exists()


def test_a_boot_has_put_back_values_but_no_files(value: Path, limits: Path) -> None:
    path = f"{limits}/zz.conf"
    changes = [Change("sysctl", KEY, "60", "7"), Change("table", "inet connlab_x")]
    file = Change("file", path, set=journal.digest(b"x"))
    left_behind(*changes, file, boot="another", booted=1, net="cookie-0")
    value.write_text("7\n")
    Path(path).write_text("x")
    assert journal.heal() == ([f"file {path}"], [], [])
    assert value.read_text() == "7\n"
    assert not list(limits.iterdir()) and not Path(journal.FOLDER).exists()


@pytest.mark.parametrize(
    ("head", "healed"),
    [
        ({}, True),
        ({"booted": 1}, False),
        ({"net": "cookie-0"}, False),
        ({"booted": 1, "net": "cookie-0"}, False),
    ],
)
def test_a_container_that_starts_anew_is_in_the_same_boot(
    head: dict[str, object], healed: bool, value: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "network", lambda: "cookie-4711")
    left_behind(Change("sysctl", KEY, "60", "7"), **head, boot="another")
    value.write_text("7\n")
    journal.heal()
    assert value.read_text() == ("60\n" if healed else "7\n")
    assert not Path(journal.FOLDER).exists()


SET = (
    f"sysctl {KEY}: 7, as an experiment set it in this boot or an earlier one, 60 before that: kept"
)


@pytest.mark.parametrize(
    ("now", "at", "kept"),
    [
        ("7", 0, [SET]),
        ("60", 0, []),
        ("33", 0, [f"sysctl {KEY}: expected 7, as an experiment set it, found 33: kept"]),
        ("7", 1 << 62, []),  # later than now: of another boot for certain
    ],
)
def test_where_the_clock_was_set_a_boot_is_not_told_from_another(
    now: str, at: int, kept: list[str], value: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "network", lambda: "cookie-4711")
    left = left_behind(Change("sysctl", KEY, "60", "7"), boot="another", booted=1)
    head, row = left.read_text().splitlines(True)
    row = json.dumps({**json.loads(row), "at": at or json.loads(row)["at"]}) + "\n"
    left.write_text(head + row)
    value.write_text(f"{now}\n")
    assert journal.heal() == ([], kept, [])
    assert value.read_text() == f"{now}\n"
    assert not left.exists()


def test_a_table_with_a_guards_mark_is_of_this_boot_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "network", lambda: "cookie-4711")
    script = f'echo "$@" >>{tmp_path}/ran; [ "$2" != tables ] || echo "table inet connlab_x"'
    nft(tmp_path, monkeypatch, script)
    left_behind(Change("table", "inet connlab_x"), boot="another", booted=1)
    assert journal.heal() == (["table inet connlab_x"], [], [])
    assert "delete table inet connlab_x" in (tmp_path / "ran").read_text()


def test_of_namespaces_without_a_cookie_a_boot_is_told_by_its_identity_alone(
    value: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "network", lambda: "inode-4711")
    left_behind(Change("sysctl", KEY, "60", "7"), boot="another")
    value.write_text("7\n")
    assert journal.heal() == ([], [], [])


def test_another_network_namespaces_value_waits_for_its_own_guard(
    value: Path, limits: Path
) -> None:
    path = f"{limits}/zz.conf"
    file = Change("file", path, set=journal.digest(b"x"))
    left = left_behind(Change("sysctl", KEY, "60", "7"), file, net="another")
    value.write_text("7\n")
    Path(path).write_text("x")
    assert journal.heal() == ([f"file {path}"], [], [])
    assert value.read_text() == "7\n"
    _, [waits] = journal.parse(left.name, left.read_bytes())
    assert waits.name == KEY
    assert left.stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize("made", ["changed", "a link", "a folder"])
def test_a_file_that_is_not_the_guards_any_more_is_kept(made: str, limits: Path) -> None:
    path = limits / "zz.conf"
    left_behind(Change("file", str(path), set=journal.digest(b"x")))
    if made == "changed":
        path.write_text("xy")
    elif made == "a link":
        (limits / "target").write_text("x")
        path.symlink_to(limits / "target")
    else:
        path.mkdir()
    [kept] = journal.heal().kept
    assert kept.startswith(f"file {path}: ") and kept.endswith(": kept")
    assert path.exists() and not Path(journal.FOLDER).exists()


def test_a_file_is_made_whole_or_not_at_all(limits: Path) -> None:
    path = limits / "zz.conf"
    journal.make_file(str(path), b"text", "0" * 16)
    assert path.read_bytes() == b"text" and path.stat().st_mode & 0o7777 == 0o644
    with pytest.raises(FileExistsError):
        journal.make_file(str(path), b"other", "0" * 16)
    assert path.read_bytes() == b"text"
    assert list(limits.iterdir()) == [path]


def test_what_was_being_written_when_the_guard_was_killed_goes_too(limits: Path) -> None:
    path = left_behind(Change("file", f"{limits}/zz.conf", set=journal.digest(b"x")))
    Path(journal.unfinished_file(path.name.partition(".")[0])).write_text("half")
    assert journal.heal() == ([], [], [])
    assert not list(limits.iterdir())


def test_a_last_line_without_its_end_was_never_acted_on(value: Path, folder: Path) -> None:
    path = left_behind(Change("sysctl", KEY, "60", "7"))
    with path.open("a") as file:
        file.write('{"kind": "sysctl", "name": "net.ipv4.tcp_t')
    value.write_text("7\n")
    assert journal.heal().healed == [f"sysctl {KEY}"]
    assert not folder.exists()


def test_a_guard_killed_before_it_wrote_its_head_has_changed_nothing(folder: Path) -> None:
    left_behind(Change("sysctl", KEY, "60", "7")).write_text('{"journal"')
    assert journal.heal() == ([], [], [])
    assert not folder.exists()


def test_what_cannot_be_put_back_stays_to_be_tried_again(value: Path, folder: Path) -> None:
    left_behind(Change("sysctl", KEY, "60", "7"))
    value.unlink()
    value.mkdir()
    [failed] = journal.heal().failed
    assert failed == f"sysctl {KEY}: Is a directory"
    value.rmdir()
    value.write_text("7\n")
    assert journal.heal().healed == [f"sysctl {KEY}"]
    assert not folder.exists()


@pytest.mark.parametrize("write", [False, True])
def test_of_a_parameter_that_is_gone_nothing_is_left_to_put_back(
    write: bool, value: Path, folder: Path
) -> None:
    left_behind(Change("sysctl", KEY, "60", "7"))
    value.unlink()  # as when its module is unloaded
    assert journal.heal(write) == ([], [], [])
    assert folder.exists() is not write
    assert not value.exists()


FORBIDDEN = [
    {"kind": "sysctl", "name": "kernel.core_pattern"},
    {"kind": "sysctl", "name": "net.ipv4.//.kernel.panic"},
    {"kind": "sysctl", "name": KEY, "found": "1\n2"},
    {"kind": "sysctl", "name": KEY, "found": "ü"},
    {"kind": "table", "name": "inet filter"},
    {"kind": "table", "name": "inet connlab_x; flush ruleset"},
    {"kind": "file", "name": "/etc/passwd"},
    {"kind": "file", "name": "{limits}/../passwd"},
    {"kind": "file", "name": "{limits}/.."},
    {"kind": "file", "name": "{limits}/zz.conf", "set": "no digest"},
    {"kind": "folder", "name": "/"},
    {"kind": "sysctl", "name": KEY, "at": "1"},
    {"kind": "sysctl", "name": KEY, "at": True},
    {"kind": "sysctl", "name": 7},
    {"kind": "sysctl", "name": KEY, "more": ""},
]


@pytest.mark.parametrize("row", FORBIDDEN, ids=str)
def test_root_acts_on_no_change_that_a_guard_may_not_make(
    row: dict[str, object], value: Path, limits: Path
) -> None:
    path = left_behind(Change("sysctl", KEY, "60", "7"))
    usual = {"found": "60", "set": "7" if row["kind"] != "file" else "0" * 64, "at": 1}
    name = str(row["name"]).format(limits=limits) if isinstance(row["name"], str) else row["name"]
    with path.open("a") as file:
        file.write(json.dumps({**usual, **row, "name": name}) + "\n")
    value.write_text("7\n")
    said = rf"{path.name}: line 3: expected a change that a guard may make: move it away by hand"
    with pytest.raises(Damaged, match=said):
        journal.heal()
    assert value.read_text() == "7\n" and path.exists()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (Change("sysctl", KEY, "1" * 65_537, "7"), "got 65537 characters, '111"),
        (Change("sysctl", KEY, "60\n61", "7"), r"got 5 characters, '60\\n61', expected a line of"),
        (Change("sysctl", KEY, "60", "ü"), "got 1 characters, 'ü', expected a line of ASCII"),
        (Change("sysctl", "kernel.panic", "0", "1"), "got 'kernel.panic', expected one that"),
        (Change("table", "inet filter"), "table: got 'inet filter', expected one that"),
        (Change("file", "/etc/passwd", set="0" * 64), "file: got '/etc/passwd', expected one"),
    ],
)
def test_what_no_reader_would_take_is_not_written_down(
    change: Change, why: str, value: Path, folder: Path
) -> None:
    made = Journal()
    with pytest.raises(journal.Refused, match=why):
        made.note(change)
    assert not folder.exists()
    made.note(Change("sysctl", KEY, "60", "7"))
    with pytest.raises(journal.Refused, match=why):
        made.note(change)
    value.write_text("7\n")
    made.abandon()
    assert journal.heal().healed == [f"sysctl {KEY}"]


def test_a_journal_stays_as_short_as_its_reader_wants_it(
    value: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SIZE", 1000)
    made = Journal()
    made.note(Change("sysctl", KEY, "60", "7"))
    with pytest.raises(journal.Refused, match=f"sysctl {KEY}: more than 1000 bytes of changes"):
        made.note(Change("sysctl", KEY, "7", "9" * 900))
    value.write_text("7\n")
    made.abandon()
    assert journal.heal().healed == [f"sysctl {KEY}"]


def test_a_list_of_ports_goes_back_whole(value: Path) -> None:
    ports = ",".join(str(port) for port in range(1025, 21_000, 2))
    left_behind(Change("sysctl", KEY, ports, "7"))
    value.write_text("7\n")
    assert journal.heal().healed == [f"sysctl {KEY}"]
    assert value.read_text() == f"{ports}\n"


@pytest.mark.parametrize(
    "head", [b"", b"[]\n", b"nonsense\n", b"{}\n", b'{"journal": 2}\n', b"[" * 100_000 + b"\n"]
)
def test_a_journal_without_its_head_is_named(head: bytes) -> None:
    path = left_behind(Change("sysctl", KEY, "60", "7"))
    rows = path.read_bytes().splitlines(True)
    path.write_bytes(head + rows[1])
    with pytest.raises(Damaged, match=rf"^{path}: line 1: expected "):
        journal.heal()


@pytest.mark.parametrize("token", ["../../../../tmp/x", "0" * 16])
def test_a_token_that_is_not_the_files_own_is_refused(token: str) -> None:
    path = left_behind(Change("sysctl", KEY, "60", "7"), token=token)
    with pytest.raises(Damaged, match=rf"^{path}: line 1: expected a journal's head"):
        journal.heal()


@given(st.binary(max_size=300))
def test_whatever_a_journal_says_ends_in_one_line_or_in_changes(text: bytes) -> None:
    try:
        _, changes = journal.parse("0" * 16 + ".journal", text + b"\n")
    except Damaged as error:
        assert "\n" not in str(error)
    else:
        assert all(map(journal.permitted, changes))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_journal_that_others_could_have_written_is_refused(mode: int, value: Path) -> None:
    path = left_behind(Change("sysctl", KEY, "60", "7"))
    path.chmod(mode)
    value.write_text("7\n")
    with pytest.raises(Damaged, match=rf"^{path}: mode {mode:04o} of user .*, expected root's"):
        journal.heal()
    assert value.read_text() == "7\n"


def test_a_journal_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind(Change("sysctl", KEY, "60", "7"))
    monkeypatch.setattr(journal, "ROOT", os.geteuid() + 1)
    with pytest.raises(Damaged, match=rf"user {os.geteuid()}, expected root's alone"):
        journal.heal()


def test_a_journal_of_two_names_is_refused(tmp_path: Path) -> None:
    path = left_behind(Change("sysctl", KEY, "60", "7"))
    os.link(path, tmp_path / "other")
    with pytest.raises(Damaged, match=f"^{path}: mode 0600"):
        journal.heal()


def test_a_journal_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    path = left_behind(Change("sysctl", KEY, "60", "7"))
    path.rename(tmp_path / "other")
    path.symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match=r"Too many levels of symbolic links"):
        journal.heal()
    assert (tmp_path / "other").exists()


def test_a_journal_too_long_is_refused() -> None:
    path = left_behind(Change("sysctl", KEY, "60", "7"))
    with path.open("ab") as file:
        file.truncate(journal.SIZE + 1)
    with pytest.raises(Damaged, match="bytes, expected 1048576 at most"):
        journal.heal()


@pytest.mark.parametrize("made", ["a link", "a file", "everybody's"])
def test_a_folder_that_is_not_roots_alone_is_refused(
    made: str, folder: Path, tmp_path: Path
) -> None:
    if made == "a link":
        (tmp_path / "other").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "other")
    elif made == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(Damaged, match=f"^{folder}: .*expected root's alone"):
        journal.heal()
    with pytest.raises(Damaged, match=f"^{folder}: "):
        Journal().note(Change("sysctl", KEY, "60", "7"))
    assert not list((tmp_path / "other").glob("*"))


def test_a_folder_that_another_guard_holds_is_waited_for_so_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "PATIENCE", 0.05)
    with journal._held_folder(make=True):
        folder_busy = rf"^{folder}: held by another guard for 0\.05 s$"
        with pytest.raises(OSError, match=folder_busy):
            journal.heal()
    assert not folder.exists()


def test_locks_that_nobody_holds_go_with_it(tmp_path: Path, value: Path) -> None:
    left_behind(Change("sysctl", KEY, "60", "7"))
    names = ["connlab-guard.net-1.x.lock", "connlab.other.lock"]
    for name in names:
        (tmp_path / "run" / name).write_text("1 a\n")
    journal.heal()
    assert [path.name for path in (tmp_path / "run").iterdir()] == names[1:]


def test_a_network_namespace_has_an_identity() -> None:
    assert journal.network() == journal.network()
    assert journal.network().startswith(("cookie-", "inode-"))
    assert len(journal.boot_id()) == 36


def nft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    fake = tmp_path / "nft"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_nft_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "NFT_SECONDS", 0.1)
    nft(tmp_path, monkeypatch, "exec sleep 60")
    with pytest.raises(OSError, match=r"^nft: no answer within 0\.1 s$"):
        journal.nft("list", "tables")


def test_a_table_without_the_guards_mark_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f'echo "$@" >>{tmp_path}/ran; [ "$2" = tables ] && echo "table inet connlab_x"'
    nft(tmp_path, monkeypatch, script)
    left_behind(Change("table", "inet connlab_x"))
    assert journal.heal().kept == [
        "table inet connlab_x: without the mark of the guard that made it: kept"
    ]
    assert "delete" not in (tmp_path / "ran").read_text()


def test_a_value_that_does_not_go_back_is_told_and_its_journal_stays(
    value: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value.write_text("7\n")
    path = left_behind(Change("sysctl", KEY, "60", "7"))
    monkeypatch.setattr(
        journal, "_read", lambda name: "7\n" if KEY in name else Path(name).read_text()
    )
    outcome = journal.heal()
    assert outcome.failed == [f"sysctl {KEY}: 7 after a write of 60"]
    assert (outcome.healed, outcome.kept) == ([], [])
    assert path.exists()
