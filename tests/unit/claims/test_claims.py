"""The claims' frame: parameters, records, the table, the page, the command."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field
from typer.testing import CliRunner

from bench import inventory as inventories
from bench.claims import page, register, runner, statements, table
from bench.claims.lab import Lab, NotMeasurable
from bench.claims.model import Claim, Found, Judgement, Parameters
from bench.claims.record import Figure, Kept, Record, Records
from bench.cli import app
from bench.errors import InputError, LabError
from bench.hosts.told import Told
from bench.inventory import Inventory


class Size(Parameters):
    connections: int


class Seen(Found):
    held: int = Field(description="connections held")


def measure(lab: Lab, parameters: Size) -> Seen:
    lab.note("measuring")
    return Seen(held=parameters.connections)


def judge(found: Seen) -> Judgement:
    return Judgement("confirmed", f"{found.held} held", "that is why")


CLAIM = Claim(
    id="some",
    said="Something | is said.",
    cure="Do this.",
    read="docs/limits.md",
    small=Size(connections=10),
    full=Size(connections=1_000),
    measure=measure,
    judge=judge,
    connections=lambda parameters: parameters.connections,
)


def record(**fields: Any) -> Record:
    began = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    usual: dict[str, Any] = {
        "schema_": 1,
        "id": "20260102T030405Z-claim-some",
        "claim": "some",
        "said": CLAIM.said,
        "profile": "small",
        "verdict": "confirmed",
        "measured": "10 held",
        "reason": "that is why",
        "cure": CLAIM.cure,
        "read": CLAIM.read,
        "substrate": "local",
        "kernels": {"server1": "6.1.0", "client1": "6.1.0"},
        "started": began,
        "finished": began + timedelta(seconds=7),
        "parameters": {"connections": 10},
        "figures": [Figure(name="held", value=10, description="connections held")],
    }
    return Record(**{**usual, **fields})


def keep(root: Path, one: Record) -> None:
    """As a batch does, with whatever id it has."""
    (root / one.id).mkdir(parents=True)
    Records(root).write(one)


@pytest.mark.parametrize("claim", register.CLAIMS.values(), ids=register.CLAIMS)
def test_every_claim_is_whole(claim: Claim[Any, Any]) -> None:
    assert claim.said.endswith(".") and claim.cure.endswith(".")
    assert claim.read.startswith(("docs/", "https://"))
    if claim.read.startswith("docs/"):
        assert (Path(__file__).parents[3] / claim.read).is_file()
    assert claim.connections(claim.small) <= max(100_000, claim.connections(claim.full))
    found = claim.judge.__annotations__["found"]
    model = getattr(__import__(claim.judge.__module__, fromlist=[found]), found)
    for name, field in model.model_fields.items():
        assert field.description, f"{claim.id}: {name} has no description"


def test_every_statement_is_a_claim_that_bears_its_name() -> None:
    files = {path.stem for path in Path(statements.__path__[0]).glob("[!_]*.py")}
    assert files == {name.replace("-", "_") for name in register.IDS}
    assert len(files) == len(register.IDS)
    assert all(claim.id == name for name, claim in register.CLAIMS.items())


@pytest.mark.parametrize(
    ("profile", "overrides", "line"),
    [
        ("huge", {}, "profile: got 'huge', expected one of small, full"),
        ("small", {"conections": 3}, "claim some: conections: unknown, expected one of connect"),
        (
            "small",
            {"connections": "many"},
            "claim some: connections: got 'many', expected a valid int",
        ),
    ],
)
def test_parameters_that_make_no_sense(profile: str, overrides: Any, line: str) -> None:
    with pytest.raises(InputError, match=line):
        CLAIM.parameters(profile, overrides)
    assert CLAIM.parameters("full").connections == 1_000
    assert CLAIM.parameters("full", {"connections": 7}).connections == 7


def test_the_nearest_names_are_offered() -> None:
    with pytest.raises(InputError, match="claim: got 'prt-myth', expected one of port-myth"):
        register.claim("prt-myth")


def test_a_record_is_kept_and_read_back(tmp_path: Path) -> None:
    kept = Records(tmp_path)
    made, folder = kept.create("some", record().started)
    again, _ = kept.create("some", record().started)  # another batch in the same second
    one = record(id=made)
    assert (folder, again) == (tmp_path / made, f"{made}-2")
    assert kept.write(one) == tmp_path / one.id / "claim.json"
    (tmp_path / "latest").symlink_to(one.id)
    assert list(kept.all()) == [one]
    kept.batch([one], "| table |\n")
    assert json.loads((tmp_path / "claims.json").read_text())[0]["verdict"] == "confirmed"
    assert (tmp_path / "claims.md").read_text() == "| table |\n"
    assert list(Records(tmp_path / "none").all()) == []


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    kept = Records(tmp_path)
    _, folder = kept.create("some", record().started)
    (folder / "claim.json").write_text("{}")
    whole = record()
    kept.write(whole.model_copy(update={"id": kept.create("some", record().started)[0]}))
    lines: list[str] = []
    assert [one.claim for one in kept.all(lines.append)] == [whole.claim]
    (line,) = lines
    assert line.startswith(f"claim record {folder}/claim.json: cannot be read: ")


def test_the_table_has_a_row_for_each_claim() -> None:
    text = table.markdown([record(), record(claim="other", verdict="refuted", measured="a | b")])
    rows = text.splitlines()
    assert rows[2] == "| some | 10 held | confirmed | that is why | docs/limits.md |"
    assert rows[3].startswith("| other | a \\| b | refuted |")
    assert rows[-1] == "Profile small, substrate local, Linux 6.1.0, 2026-01-02, 14 s in all."


def test_the_page_tells_of_the_record_that_says_most() -> None:
    records = [
        record(id="1", verdict="refuted", measured="full", profile="full"),
        record(id="2", verdict="confirmed", measured="small"),
        record(id="3", verdict="not measurable here", measured="", profile="full"),
    ]
    assert page.choose(records)["some"].id == "1"
    assert page.choose(records[1:])["some"].id == "2"
    assert page.choose(records[2:])["some"].id == "3"
    text = page.render([CLAIM, replace(CLAIM, id="never")], records)
    assert "**Refuted**: full." in text and "| connections held | 10 |" in text
    assert "not measured yet" in text and "[docs/limits.md](limits.md)" in text


def test_the_page_tells_of_other_kernels_as_well() -> None:
    vm = {"server1": "6.1.0-vm", "client1": "6.1.0-vm"}
    records = [
        record(id="1", profile="full", kernels={"server1": "6.18"}),
        record(id="2", measured="small there", kernels=vm),
        record(id="3", measured="full there", profile="full", substrate="vm", kernels=vm),
        record(id="4", verdict="failed", kernels={"server1": "5.10"}),
        record(id="5", claim="other", kernels={"server1": "5.15"}),
    ]
    assert [one.id for one in page.elsewhere("some", records, page.choose(records))] == ["1"]
    newer = [*records, record(id="6", profile="full", kernels={"server1": "6.18"})]
    assert [one.id for one in page.elsewhere("some", newer, page.choose(newer))] == ["3"]
    assert "On Linux 6.1.0-vm (2026-01-02, profile full, substrate vm) confirmed: full there." in (
        page.render([CLAIM], newer)
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        (None, "-"),
        (1_234_567, "1,234,567"),
        (0.12345, "0.1235"),
        (12_345.6, "12,346"),
        ([1, 2], "1, 2"),
        ({"a": 1_000}, "a: 1,000"),
        ("as it is", "as it is"),
        ([], "-"),
        ({"sock_inode_cache": 862.1, "TCP": 2_340}, "sock_inode_cache: 862.1; TCP: 2,340"),
        ({"steps": [{"a": 1, "b": 2}, {"a": 3}]}, "steps:<br>a: 1; b: 2<br>a: 3"),
    ],
)
def test_figures_are_for_readers(value: Any, text: str) -> None:
    assert page.figure(value) == text


@pytest.mark.parametrize(
    ("value", "cells"),
    [
        (5, []),
        ([], []),
        ([1, {"a": 1}], []),
        ({"a": 1, "b": {"c": 2}}, []),
        (
            [{"bound_by": "none", "held": 1_000}, {"bound_by": "memory", "lost": 2}],
            [["bound by", "held", "lost"], ["none", "1,000", "-"], ["memory", "-", "2"]],
        ),
        (
            {"IPv4": {"same, without SO_REUSEADDR": "EADDRINUSE"}},
            [["", "same, without SO_REUSEADDR"], ["IPv4", "EADDRINUSE"]],
        ),
    ],
)
def test_a_figure_with_rows_is_a_table_of_its_own(value: Any, cells: list[list[str]]) -> None:
    assert page.grid(value) == cells


def test_figures_of_one_value_share_a_table() -> None:
    figures = [
        {"name": "a", "value": 1, "description": ""},
        {"name": "b", "value": [{"c": 2}], "description": "rows"},
        {"name": "d", "value": 3, "description": ""},
    ]
    told = record(id="1", profile="full").model_copy(
        update={"figures": [Figure.model_validate(one) for one in figures]}
    )
    text = page.render([CLAIM], [told])
    assert "| figure | value |\n|---|--:|\n| a | 1 |\n| d | 3 |\n\nrows:\n\n| c |\n" in text


# Running them.


@pytest.fixture
def hosts(tmp_path: Path) -> Inventory:
    (tmp_path / "hosts.yml").write_text(
        "servers: {hosts: {a: {lab_data_address: 198.18.0.1}}}\n"
        "clients: {hosts: {b: {lab_data_address: 198.18.1.1}}}\n"
    )
    return inventories.load([tmp_path])


def made(
    hosts: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[runner.Runner, list[str]]:
    """A runner that asks no hosts, and what it says."""
    said: list[str] = []
    one = runner.Runner(
        hosts, lambda host: pytest.fail("a host was reached"), tmp_path, lambda c, t: said.append(t)
    )
    monkeypatch.setattr(one, "_look", lambda: ({}, 500))
    return one, said


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (None, "confirmed"),
        (NotMeasurable("no such kernel"), "not measurable here"),
        (InputError("group routers: empty"), "not measurable here"),
        (LabError("host a: gone"), "failed"),
        (KeyError("nobody"), "failed"),
    ],
)
def test_each_claim_ends_in_a_record(
    error: Exception | None,
    verdict: str,
    hosts: Inventory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(lab: Lab, parameters: Size) -> Seen:
        raise error or AssertionError

    claim = CLAIM if error is None else replace(CLAIM, measure=fails)
    one, said = made(hosts, tmp_path, monkeypatch)
    found = one.run([runner.Asked(claim, claim.small)], "small", by_name=False)[0]
    assert found.verdict == verdict
    reason = "internal error: KeyError: 'nobody'" if isinstance(error, KeyError) else str(error)
    assert found.reason == (reason if error else "that is why")
    assert list(Records(tmp_path).all()) == [found]
    assert said[0] == "begins" and said[-1].startswith(verdict)


def test_a_figure_of_another_kind_fails_its_claim_alone(
    hosts: Inventory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def lied_to(lab: Lab, parameters: Size) -> Seen:
        return Seen(held=Told("a", {"held": "many"}).number("held"))

    one, _ = made(hosts, tmp_path, monkeypatch)
    asked = [runner.Asked(claim, claim.small) for claim in (replace(CLAIM, measure=lied_to), CLAIM)]
    found = one.run(asked, "small", by_name=False)
    assert [record.verdict for record in found] == ["failed", "confirmed"]
    assert found[0].reason == ("host a: protocol: told: held: got 'many', expected a whole number")
    assert "Traceback" not in capsys.readouterr().err


def test_what_the_inventory_lacks_is_bad_input_for_who_asks_by_name(
    hosts: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = made(hosts, tmp_path, monkeypatch)
    asked = [runner.Asked(replace(CLAIM, groups=("routers",)), CLAIM.small)]
    with pytest.raises(InputError, match=r"claim some: .* group routers: empty, .*lab_routers=1"):
        one.run(asked, "small", by_name=True)
    assert not list(Records(tmp_path).all())
    assert one.run(asked, "small", by_name=False)[0].verdict == "not measurable here"


def test_bad_input_that_only_the_run_sees_is_bad_input_for_who_asks_by_name(
    hosts: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(lab: Lab, parameters: Size) -> Seen:
        raise InputError("connections: got 9, expected at most 5 tuples")

    one, _ = made(hosts, tmp_path, monkeypatch)
    asked = [runner.Asked(replace(CLAIM, measure=fails), CLAIM.small)]
    with pytest.raises(InputError, match="expected at most 5 tuples"):
        one.run(asked, "small", by_name=True)
    assert one.run(asked, "small", by_name=False)[0].verdict == "not measurable here"


def test_a_profile_that_does_not_fit_says_what_does(
    hosts: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = made(hosts, tmp_path, monkeypatch)
    asked = [runner.Asked(CLAIM, CLAIM.full)]
    with pytest.raises(InputError, match="claim some: connections: got 1,000, expected at most 5"):
        one.run(asked, "full", by_name=True)
    assert not list(Records(tmp_path).all())
    found = one.run(asked, "full", by_name=False)[0]
    assert found.verdict == "not measurable here" and "at most 500" in found.reason


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["claims", "run", "prt-myth"], "claim: got 'prt-myth', expected one of port-myth"),
        (["claims", "run", "--profile", "big"], "--profile: got 'big', expected one of small"),
        (["claims", "run", "--set", "connections=5"], "--set: got .* expected a single claim"),
        (["claims", "run", "port-myth", "--set", "x=5"], "claim port-myth: x: unknown"),
        (
            ["claims", "run", "port-myth", "--set", "connections=0"],
            "claim port-myth: connections: got 0, expected greater than or equal to 1$",
        ),
        (
            ["claims", "run", "nat", "--set", "first_port=9", "--set", "last_port=2"],
            r"claim nat: last_port: got 2, expected at least first_port \(9\)$",
        ),
    ],
)
def test_bad_input_is_one_line(words: list[str], line: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*words, "--results", str(tmp_path)])
    assert done.exit_code == 2
    assert len(done.output.strip().splitlines()) == 1
    assert re.search(line, done.output)
    assert not list(tmp_path.iterdir())


def test_claims_are_listed_with_their_newest_verdict(tmp_path: Path) -> None:
    keep(tmp_path, record(claim="port-myth", verdict="refuted"))
    done = CliRunner().invoke(app, ["claims", "--json", "--results", str(tmp_path)])
    listed = {one["claim"]: one for one in json.loads(done.stdout)}
    assert list(listed) == list(register.CLAIMS)
    assert listed["port-myth"]["newest"]["verdict"] == "refuted"
    done = CliRunner().invoke(app, ["claims", "--results", str(tmp_path)])
    assert done.exit_code == 0 and "refuted" in done.output


def test_the_page_says_what_its_records_say() -> None:
    docs = Path(__file__).parents[3] / "docs"
    kept = Kept(docs / "measured").all()
    claims = list(register.CLAIMS.values())
    assert page.told(claims, kept) and {one.claim for one in kept} == set(register.CLAIMS)
    assert len(page.told(claims, kept)) == len(kept)
    again = "make it anew: python -m bench claims page"
    assert (docs / "claims.md").read_text() == page.render(claims, kept), again


def test_only_what_the_page_tells_of_is_kept(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.keep([record(id="1"), record(id="2", profile="full")])
    kept.keep(page.told([CLAIM], kept.all()))
    assert [one.id for one in kept.all()] == ["2"]


def test_the_page_is_written_whole(tmp_path: Path) -> None:
    keep(tmp_path, record(claim="port-myth", verdict="refuted", profile="full"))
    target = tmp_path / "claims.md"
    words = ["claims", "page", str(target), "--results", str(tmp_path)]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert "**Refuted**: 10 held." in target.read_text()
    words[-1] = str(tmp_path / "elsewhere")  # where no record is: those beside the page count
    assert CliRunner().invoke(app, words).exit_code == 0
    assert "**Refuted**: 10 held." in target.read_text()
    words[2] = str(tmp_path / "none" / "claims.md")
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, "No such file" in done.output) == (2, True)
