"""What hosts and files say reaches terminal, Ansible and page without acting there."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import runs
import typer
from captured import collected
from hypothesis import given
from hypothesis import strategies as st
from tune_loader import load
from typer.testing import CliRunner

from bench import inventory, units
from bench.claims import table
from bench.claims.record import Record
from bench.cli import app, common
from bench.errors import InputError, LabError
from bench.hosts import count
from bench.hosts.count import Count
from bench.results import facts, page, words
from bench.results.store import Store
from bench.run import progress
from bench.run.curve import Progress

EVIL = "a\x1b[2J\x1b]0;x\x07\r\n\0\x7f\x9b31m\u202eb\u2066c\u2028d\ud800[/red] [bold]:smile:"
SAFE = r"a\x1b[2J\x1b]0;x\x07\r\n\x00\x7f\x9b31m\u202eb\u2066c\u2028d\ud800[/red] [bold]:smile:"
ACTING = set("\x1b\x07\r\0\x7f\x9b\u202e\u2066\u2028\ud800")


def test_what_acts_is_written_as_an_escape() -> None:
    assert units.printable(EVIL) == SAFE
    assert units.printable("µs, ü, 漢字, 🙂, \\x1b") == "µs, ü, 漢字, 🙂, \\x1b"
    assert units.printable("a\tb\nc\r\n") == r"a\tb\nc\r\n"
    assert units.printable("a\tb\nc\r\n", lines=True) == "a\tb\nc\\r\n"


@given(st.text(st.characters(codec=None)))
def test_a_line_stays_one_and_is_the_same_twice(text: str) -> None:
    shown = units.printable(text)
    assert not ACTING & set(shown)
    assert len(shown.splitlines()) <= 1
    assert units.printable(shown) == shown
    shown.encode()
    if text.isprintable():
        assert shown == text


def test_every_error_is_a_line() -> None:
    for error in (InputError(EVIL), LabError(f"host h: {EVIL}")):
        assert str(error).endswith(SAFE)


@pytest.mark.parametrize("show", list(common.Show))
def test_a_command_ends_in_a_line(show: common.Show, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, common.exit_status(show):
        raise LabError(EVIL)
    assert ended.value.exit_code == 3
    said = capsys.readouterr()
    if show is common.Show.ndjson:
        assert json.loads(said.out)["message"] == SAFE
    else:
        assert said.err == f"connlab: {SAFE}\n"


def test_an_internal_error_acts_on_no_terminal() -> None:
    said = io.StringIO()
    with redirect_stderr(said), pytest.raises(typer.Exit) as ended, common.exit_status():
        raise RuntimeError(EVIL)
    assert ended.value.exit_code == 3
    assert not ACTING & set(said.getvalue())
    assert said.getvalue().splitlines()[-1] == f"connlab: internal error: RuntimeError: {SAFE}"


def test_facts_and_evidence_are_shown_as_they_are_kept_raw() -> None:
    event: dict[str, Any] = {
        **dict.fromkeys(("cpu", "mem_total_kib", "nofile_soft", "nofile_hard", "own_tasks"), 1),
        **{"tracking": False, "cap_sys_resource": False, "ehash_entries": 1},
        **{"kernel": EVIL, "python": EVIL, "sysctl": {EVIL: EVIL}, "addresses": [EVIL]},
        "roles": {
            "one": {"unreadable": EVIL},
            EVIL: {
                "reported": {EVIL: EVIL},
                "settings": {EVIL: {"found": "1\t2", "set": EVIL}},
            },
        },
    }
    found = facts.host_record(event, ["servers"]).model_dump_json(exclude={"phases"})
    assert not ACTING & set(found)
    assert json.loads(found)["kernel"] == SAFE
    assert json.loads(found)["tuning"][SAFE][SAFE]["found"] == "1 2"
    phase = collected("6.18", "peak")
    phase["texts"]["kernel_log"] = f"[1.0] TCP: out of memory {EVIL}\n"
    phase["texts"]["sockstat"] = EVIL
    phase["missing"] = {"nstat": EVIL}
    seen = facts.phase(phase)
    assert seen.missing["nstat"] == SAFE
    assert not ACTING & set(seen.model_dump_json())


def evil_run() -> Any:
    run = runs.million()
    run.hosts["server1"].kernel = EVIL + "<script>"
    run.hosts["server1"].reported[EVIL] = "<b>" + EVIL
    run.hosts["server1"].phases["peak"].missing[EVIL] = EVIL
    run.measured.errors[EVIL] = 3
    run.measured.kernel_bytes_per_connection.by_cache["<i>\x1b[31m$x^"] = 9_000.0
    return run.model_copy(
        update={
            "run_id": EVIL,
            "verdict": "fail",
            "reason": EVIL + "<script>",
            "bound_by": EVIL,
            "config": {**run.config, "title": EVIL},
        }
    )


def test_the_page_shows_and_does_not_obey() -> None:
    html = page.render(evil_run())
    assert not ACTING - {"\r"} & set(html)
    assert "<script" not in html and "<i>" not in html and "<b>a" not in html
    assert "a\\x1b[2J" in html and "\\u202e" in html


def test_the_summary_shows_and_does_not_obey() -> None:
    lines = words.summary(evil_run(), Path("x"))
    assert not ACTING & set("".join(lines))
    assert all(len(line.splitlines()) == 1 for line in lines)


def test_progress_shows_and_does_not_obey(capsys: pytest.CaptureFixture[str]) -> None:
    now = Progress("prepare", 0, 1, 0.0, 0, 0, None, EVIL)
    assert progress.line(now) == f"prepare: {SAFE}"
    for show in ("plain", "ndjson"):
        with progress.view(show, common.console()) as update:
            update(now)
    assert not ACTING & set(capsys.readouterr().out)


def test_a_bar_takes_brackets_for_text() -> None:
    out = io.StringIO()
    screen = common.console()
    screen.file, screen._force_terminal = out, True
    with progress.view("auto", screen) as update:
        update(Progress("[/red]", 1, 2, 0.0, 0, 0, None))
        update(Progress("ramp", 1, 2, 0.0, 0, 0, None, "[/red] :smile:"))
    assert "[/red]" in out.getvalue() and ":smile:" in out.getvalue()


def test_peers_are_counted_whatever_they_are_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "hosts.yml").write_text(
        "servers: {hosts: {a: {lab_data_address: 198.18.0.1}}}\n"
        "clients: {hosts: {b: {lab_data_address: 198.18.1.1}}}\n"
    )
    message = {"counts": {EVIL: 7, "[/red]": 2}, "total": 9, "seconds": 0.1}
    assert list(count._count("a", message).counts) == [SAFE, "[/red]"]

    def look(*_: Any) -> list[Count]:
        return [count._count("a", message)]

    monkeypatch.setattr(count, "look", look)
    words = ["count", "--by", "peer", "-i", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "[/red]" in done.stdout and "[2J" in done.stdout and not ACTING & set(done.stdout)
    done = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(done.stdout)["hosts"]["a"]["counts"] == {SAFE: 7, "[/red]": 2}


def test_a_list_of_runs_and_claims_that_others_wrote(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = json.loads(runs.million().model_dump_json(by_alias=True))
    record["run_id"] = EVIL.replace("\ud800", "")
    tmp_path.joinpath("20260131T120000Z-million").mkdir()
    (tmp_path / "20260131T120000Z-million" / "run.json").write_text(json.dumps(record))
    assert len(list(store.runs())) == 1
    done = CliRunner().invoke(app, ["list", "--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert not ACTING & set(done.stdout)
    claim = Record(
        schema_=1,
        id="x",
        claim="some",
        said="s",
        profile="small",
        verdict="confirmed",
        measured=EVIL,
        reason=EVIL,
        cure="c",
        read="r",
        substrate="local",
        kernels={},
        started=datetime(2026, 1, 31, tzinfo=UTC),
        finished=datetime(2026, 1, 31, tzinfo=UTC),
        parameters={},
    )
    out = io.StringIO()
    screen = common.console(width=300)
    screen.file = out
    screen.print(table.rich_table([claim]))
    assert "[/red]" in out.getvalue() and not ACTING & set(out.getvalue())
    assert not ACTING & set(table.markdown([claim]))


def test_ansible_shows_and_does_not_obey(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = load("bench_run", "action_plugins", "bench_run")
    seen: list[str] = []

    class Screen:
        def display(self, text: str, color: str) -> None:
            seen.append(text)

    class Child:
        def __init__(self, *lines: str) -> None:
            self.stdout = lines

    lines = (
        json.dumps({"event": "progress", "text": EVIL}),
        "[]",
        json.dumps({"event": "result", "summary": [EVIL]}),
    )

    monkeypatch.setattr(plugin, "Display", Screen)
    action = plugin.ActionModule.__new__(plugin.ActionModule)
    last = action._follow(Child(*lines, EVIL))
    assert seen == [f"  {SAFE}"]
    assert last == {"event": "text", "text": SAFE}
    action._follow(Child(*lines))
    assert seen[1:] == [f"  {SAFE}"] * 2


def test_a_locale_without_the_characters_is_no_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", "no-µ", "-i", str(inventory.DEFAULT)],
        capture_output=True,
        check=False,
        env={"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": "/usr/bin"},
    )
    assert done.returncode == 2 and b"Traceback" not in done.stderr
