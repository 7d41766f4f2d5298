"""The directory of results: where nothing leads out of it, and what a bad disk or file does."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import runs
from typer.testing import CliRunner

from bench import wire
from bench.claims.record import Records
from bench.cli import app
from bench.errors import InputError, LabError
from bench.results import store as module
from bench.results.store import Store

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
ID = "20260131T120000Z-million"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "name",
    ["{}/x", "../x", "authorized_keys", "ss_s/../../x", "", "meminfo\0", ".meminfo"],
)
def test_texts_have_names_of_the_closed_list_alone(store: Store, name: str) -> None:
    name = name.format(store.root.parent)
    run_id, folder = store.create("million", NOW)
    with pytest.raises(LabError, match=r"^host h: evidence .*: expected one of ss_s, sockstat, "):
        store.write_raw(run_id, "h", "peak", {"meminfo": "x", name: "x"})
    assert everything(folder) == set()


@pytest.mark.parametrize("name", ["../../x", "{}/x", "", "..", ".ssh", "-h", "a/b", "a b"])
def test_host_phase_and_scenario_are_names(store: Store, name: str) -> None:
    name = name.format(store.root.parent)
    run_id, folder = store.create("million", NOW)
    with pytest.raises(LabError, match=r"^evidence of .*: expected a name: 1 to 253 of the char"):
        store.write_raw(run_id, name, "peak", {"meminfo": "x"})
    with pytest.raises(LabError, match=r"^evidence of "):
        store.write_raw(run_id, "h", name, {"meminfo": "x"})
    if "/" in name or name == "a b":
        with pytest.raises(InputError, match=r"^name: got .*, expected 1 to 253 of the characters"):
            store.create(name, NOW)
        with pytest.raises(InputError, match=r"^name: got "):
            Records(store.root).create(name, NOW)
    assert everything(folder.parent) == {run_id}


def test_a_text_has_an_end(store: Store) -> None:
    run_id, folder = store.create("million", NOW)
    with pytest.raises(LabError, match=r"^host h: evidence nstat: got 4,194,305 characters, expec"):
        store.write_raw(run_id, "h", "peak", {"nstat": "x" * ((4 << 20) + 1)})
    assert everything(folder) == set()


def test_a_link_in_the_way_of_a_text_is_refused(store: Store, tmp_path: Path) -> None:
    run_id, folder = store.create("million", NOW)
    (tmp_path / "out").mkdir()
    (folder / "raw").symlink_to(tmp_path / "out")
    with pytest.raises(LabError, match=r"raw/h/peak: cannot be written: Not a directory$"):
        store.write_raw(run_id, "h", "peak", {"meminfo": "x"})
    assert everything(tmp_path / "out") == set()


def test_texts_stay_as_printed(store: Store) -> None:
    run_id, folder = store.create("million", NOW)
    texts = {name: "\x1b[31m µ\r\n\0" for name in wire.SOURCES}
    store.write_raw(run_id, "h", "peak", texts)
    found = {path.name: path.read_bytes().decode() for path in (folder / "raw/h/peak").iterdir()}
    assert found == texts


@pytest.mark.parametrize("run_id", ["../../x", "{}", ".", "..", "", "a/b", "-x", "x\n"])
def test_run_ids_that_a_user_gives_are_names(store: Store, run_id: str) -> None:
    run_id = run_id.format(store.root.parent)
    store.root.mkdir()
    with pytest.raises(InputError, match=r"^run: got .*, expected a run in "):
        store.load(run_id)
    done = CliRunner().invoke(app, ["report", "--results", str(store.root), "--", run_id])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output


def write(store: Store, **changes: Any) -> Path:
    store.root.mkdir(parents=True, exist_ok=True)
    store.write(runs.million().model_copy(update=changes))
    return store.root / changes.get("run_id", ID)


def test_latest_leads_to_a_run_of_the_same_directory_alone(store: Store, tmp_path: Path) -> None:
    write(store)
    elsewhere = write(Store(tmp_path / "elsewhere"))
    assert store.load("latest").run_id == ID
    for target in (elsewhere, "../elsewhere/" + ID):
        (store.root / "latest").unlink()
        (store.root / "latest").symlink_to(target)
        with pytest.raises(InputError, match=r"^run: got 'latest', which leads to .*, expected a "):
            store.load("latest")
    (store.root / "linked").symlink_to(elsewhere)
    with pytest.raises(InputError, match=r"^run: got 'linked', expected a run in "):
        store.load("linked")


def test_a_report_is_written_where_the_run_was_read(store: Store, tmp_path: Path) -> None:
    folder = write(store)
    text = json.loads((folder / "run.json").read_text())
    text["run_id"] = "../../out"
    (folder / "run.json").write_text(json.dumps(text))
    (tmp_path / "out").mkdir()
    done = CliRunner().invoke(app, ["report", ID, "--results", str(store.root)])
    assert done.exit_code == 0, done.output
    assert everything(tmp_path / "out") == set()
    assert (folder / "report.html").is_file()


def test_damaged_runs_are_named_and_the_list_goes_on(store: Store) -> None:
    good = write(store)
    for name, content in {
        "20260101T000000Z-a": b"{}",
        "20260101T000000Z-b": b"\xff\xfe{",
        "20260101T000000Z-c": good.joinpath("run.json").read_bytes()[:900],
        "20260101T000000Z-d": b"[" * 100_000,
        "20260101T000000Z-e": b"",
    }.items():
        (store.root / name).mkdir()
        (store.root / name / "run.json").write_bytes(content)
    (store.root / "20260101T000000Z-f").mkdir()
    (store.root / "20260101T000000Z-g" / "run.json").mkdir(parents=True)
    (store.root / "20260101T000000Z-h").mkdir()
    (store.root / "20260101T000000Z-h" / "run.json").symlink_to("nowhere")
    (store.root / "20260101T000000Z-i").write_text("a file")
    (store.root / "20260101T000000Z-claim-x").mkdir()
    (store.root / "20260101T000000Z-claim-x" / "claim.json").write_text("{}")
    (store.root / "notes").mkdir()
    lines: list[str] = []
    assert [run.run_id for run in store.runs(lines.append)] == [ID]
    assert [line.split(":")[0] for line in lines] == [
        f"run 20260101T000000Z-{x}" for x in "abcdefgh"
    ]
    assert all(": run.json cannot be read: " in line for line in lines[:5])
    assert lines[5].endswith(": no run.json: the run is not over or was killed")
    assert lines[6].endswith(": run.json cannot be read: Is a directory")
    words = ["--results", str(store.root)]
    done = CliRunner().invoke(app, ["list", *words])
    assert done.exit_code == 0 and ID in done.stdout
    assert done.stderr.splitlines() == [f"connlab: {line}" for line in lines]
    done = CliRunner().invoke(app, ["list", "--json", *words])
    assert json.loads(done.stdout)["unreadable"] == lines
    done = CliRunner().invoke(app, ["claims", *words])
    assert done.exit_code == 0
    assert "20260101T000000Z-claim-x/claim.json: cannot be read: " in done.stderr


def test_results_that_are_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for words in (["list"], ["claims"], ["report"]):
        done = CliRunner().invoke(app, [*words, "--results", str(tmp_path / "file")])
        assert done.exit_code == 2, done.output
        assert done.stderr.count("\n") == 1


def test_where_no_run_can_be_kept_it_is_said_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root, line in {
        tmp_path / "file": "is a file, expected a directory",
        tmp_path / "file" / "below": "cannot be written: Not a directory",
        Path("/proc/connlab"): "cannot be written: No such file or directory",
    }.items():
        with pytest.raises(InputError) as refused:
            Store(root).create("million", NOW)
        assert str(refused.value) == f"--results {root}: {line}"
    assert everything(tmp_path) == {"file"}


def test_a_run_that_comes_to_nothing_leaves_nothing(store: Store) -> None:
    run_id, _ = store.create("million", NOW)
    store.discard(run_id)
    assert everything(store.root) == set()


def test_another_directory_called_latest(store: Store) -> None:
    store.root.mkdir()
    (store.root / "latest").mkdir()
    with pytest.raises(LabError, match=r"run.json: cannot be written: Is a directory$"):
        store.write(runs.million())
    assert store.load(ID) == runs.million()
    assert everything(store.root) == {"latest", ID, f"{ID}/run.json"}


def test_the_longest_text_is_kept(store: Store) -> None:
    run_id, folder = store.create("million", NOW)
    store.write_raw(run_id, "h", "peak", {"nstat": "x" * (4 << 20)})
    assert (folder / "raw/h/peak/nstat").stat().st_size == 4 << 20


@pytest.mark.parametrize(
    ("hosts", "seconds", "wanted"),
    [(1, 0, 17 << 20), (3, 0, 19 << 20), (3, 1_000.9, (19 << 20) + 3 * 1_000 * 1024)],
)
def test_there_has_to_be_room_for_what_all_hosts_will_say(
    store: Store, monkeypatch: pytest.MonkeyPatch, hosts: int, seconds: float, wanted: int
) -> None:
    free = {"bytes": wanted}
    monkeypatch.setattr(module, "_free", lambda root: free["bytes"])
    store.create("million", NOW, hosts, seconds)
    free["bytes"] -= 1
    with pytest.raises(InputError, match=r"^--results .*: got [0-9]+ MiB free, expected"):
        store.create("million", NOW, hosts, seconds)
    assert len(list(store.root.iterdir())) == 1


def test_only_runs_are_discarded(store: Store, tmp_path: Path) -> None:
    store.root.mkdir()
    (tmp_path / "other").mkdir()
    for name in ("../other", str(tmp_path / "other"), "."):
        store.discard(name)
    assert (tmp_path / "other").exists()
    assert store.root.exists()
