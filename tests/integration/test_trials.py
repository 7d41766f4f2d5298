"""Small experiments over real processes in namespaces, and settings that go back."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import sides
from agents import running, until
from beds import Bed

from bench import trials as controller
from bench.errors import LabError
from bench.trials import Trials

KEY = "net.ipv4.tcp_fin_timeout"


@pytest.fixture
def trials(bed: Bed):
    # `sudo` is not needed in a namespace: root already.
    with Trials(bed.connect) as made:
        yield made


def found(bed: Bed, host: str = "client") -> str:
    return bed.net.run(host, "sysctl", "-n", KEY).strip()


def guard(trials: Trials, bed: Bed, **args):
    return trials.begin(bed.inventory().hosts["client"], "guard", **args)


def test_what_a_guard_sets_goes_back_when_it_is_told_to(trials: Trials, bed: Bed) -> None:
    before = found(bed)
    one = guard(trials, bed, sysctl={KEY: "7"})
    assert one.first["found"] == {KEY: before}
    assert found(bed) == "7"
    one.go(sysctl={KEY: "9"}, tables={"inet connlab_test": "chain c { }"})
    assert found(bed) == "9"
    assert "connlab_test" in bed.net.run("client", "nft", "list", "tables")
    one.go(back=True)
    assert found(bed) == before
    assert "connlab_test" not in bed.net.run("client", "nft", "list", "tables")


@pytest.mark.parametrize("how", ["dismissed", "input ended", "terminated"])
def test_what_a_guard_sets_goes_back_however_it_ends(how: str, trials: Trials, bed: Bed) -> None:
    before = found(bed)
    one = guard(trials, bed, sysctl={KEY: "7"})
    process = bed.links["client"].started[0]
    assert found(bed) == "7"
    if how == "dismissed":
        one.end()
    elif how == "input ended":
        process.child.stdin.close()
    else:
        os.kill(process.child.pid, signal.SIGTERM)
    assert until(lambda: found(bed) == before)
    assert until(lambda: not running(process.child.pid))
    assert not Path(bed.links["client"].paths[0]).parent.exists()


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ({"sysctl": {"kernel.panic": "1"}}, "sysctl: got kernel.panic, expected a key of net"),
        ({"sysctl": {"net.ipv4..tcp_fin_timeout": "7"}}, "sysctl: got net.ipv4..tcp_fin_timeout"),
        ({"sysctl": {"net.ipv4.//.kernel.panic": "1"}}, "sysctl: got net.ipv4.//.kernel.panic"),
        ({"tables": {"inet filter": ""}}, "table: got 'inet filter', expected FAMILY connlab_NAME"),
        ({"files": {"/etc/passwd": ""}}, "file: got /etc/passwd, expected one in"),
        ({"files": {"/etc/security/limits.d/../x": ""}}, "file: got"),
    ],
)
def test_a_guard_changes_only_what_it_may(trials: Trials, bed: Bed, args, line: str) -> None:
    with pytest.raises(LabError, match=line):
        guard(trials, bed, **args)


def test_a_value_that_does_not_stick_is_put_back(trials: Trials, bed: Bed) -> None:
    before = found(bed)
    with pytest.raises(LabError):
        guard(trials, bed, sysctl={KEY: "5", "net.ipv4.ip_local_port_range": "9 1"})
    assert found(bed) == before


def test_what_cannot_be_read_is_told_in_the_systems_words(trials: Trials, bed: Bed) -> None:
    said = "^host client: guard: /proc/sys/net/ipv4/no_such: No such file or directory$"
    with pytest.raises(LabError, match=said):
        guard(trials, bed, sysctl={"net.ipv4.no_such": "1"})


@pytest.mark.parametrize("name", ["no_such", "../guard", "guard.py", "door"])
def test_a_trial_that_there_is_not_is_named(trials: Trials, bed: Bed, name: str) -> None:
    with pytest.raises(LabError, match=r"trial: got .* expected the name of a trial"):
        trials.begin(bed.inventory().hosts["server"], name)


def test_two_trials_on_one_host_do_not_mix(trials: Trials, bed: Bed) -> None:
    one = guard(trials, bed, sysctl={KEY: "7"})
    other = trials.begin(bed.inventory().hosts["server"], "guard", sysctl={KEY: "8"})
    told = trials.together({one: {"sysctl": {KEY: "11"}}, other: {"sysctl": {KEY: "12"}}})
    assert told[one]["found"] == {KEY: "7"} and told[other]["found"] == {KEY: "8"}
    one.end()
    assert found(bed, "server") == "12"  # dismissing one leaves the other
    assert other.go(sysctl={KEY: "13"})["found"] == {KEY: "12"}


def test_an_answer_that_comes_while_another_is_asked_is_kept(trials: Trials, bed: Bed) -> None:
    one = guard(trials, bed, sysctl={KEY: "7"})
    other = trials.begin(bed.inventory().hosts["server"], "guard", sysctl={KEY: "8"})
    one.agent.tell({"op": "go", "sysctl": {KEY: "11"}})
    assert until(lambda: found(bed) == "11")
    assert other.go(sysctl={KEY: "12"})["found"] == {KEY: "8"}
    third = trials.begin(bed.inventory().hosts["client"], "guard", sysctl={})
    assert third.first["found"] == {}
    assert trials.gather([one], 5)[one]["found"] == {KEY: "7"}


def test_what_could_not_be_put_back_is_an_error(bed: Bed) -> None:
    table = {"inet connlab_test": "chain c { }"}
    with (
        pytest.raises(LabError, match=r"host client: not put back: .*nft: Error"),
        Trials(bed.connect) as made,
    ):
        guard(made, bed, tables=table)
        bed.net.run("client", "nft", "delete", "table", "inet", "connlab_test")


def locks(bed: Bed) -> list[Path]:
    """What marks settings of the client's network namespace as changed."""
    net = bed.net.run("client", "stat", "-L", "-c", "%i", "/proc/self/ns/net").strip()
    return list(Path("/run").glob(f"connlab-guard.*net-{net}*"))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"sysctl": {KEY: "9"}}, f"sysctl {KEY}"),
        ({"tables": {"inet connlab_test": "chain d { }"}}, "table inet connlab_test"),
        ({"files": {"/etc/security/limits.d/zz-connlab-test.conf": ""}}, "file /etc/security/limi"),
    ],
)
def test_another_controller_is_refused_what_one_has_changed(
    change, name: str, trials: Trials, bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = found(bed)
    host = bed.inventory().hosts["client"]
    one = trials.guard(host, **{**change, "sysctl": {KEY: "7"}})
    pid = bed.agent_pid("client")
    monkeypatch.setattr(controller, "OWNER", "another")
    with Trials(bed.connect) as other:
        line = rf"^host client: {name}.*: changed by process {pid} of another experiment, expected"
        with pytest.raises(LabError, match=line):
            other.guard(host, **change)
    assert found(bed) == "7"  # what it was refused it does not put back either
    one.end()
    assert found(bed) == before
    with Trials(bed.connect) as other:
        other.guard(host, **change)
    assert found(bed) == before
    assert not locks(bed)


def test_another_setting_may_be_changed_meanwhile(trials: Trials, bed: Bed) -> None:
    guard(trials, bed, sysctl={KEY: "7"})
    with Trials(bed.connect) as other:
        guard(other, bed, sysctl={"net.ipv4.tcp_tw_reuse": "0"})


def test_guards_of_one_controller_do_not_refuse_one_another(bed: Bed, tmp_path: Path) -> None:
    before = found(bed)
    lab = sides.lab(bed, tmp_path)
    with lab.settings([lab.client], {KEY: 7}), lab.settings([lab.server], {KEY: 8}):
        with lab.settings([lab.client], {KEY: 9}) as told:
            assert told == {"client": {KEY: "7"}}
            assert found(bed) == "9"
        assert found(bed) == "7"
        assert locks(bed)  # the outer one still has it changed
    assert found(bed) == before
    assert not locks(bed)


def test_a_guard_that_was_killed_is_in_nobodys_way(bed: Bed) -> None:
    with Trials(bed.connect) as made:
        guard(made, bed, sysctl={KEY: "7"})
        os.kill(bed.agent_pid("client"), signal.SIGKILL)
        assert until(lambda: not running(bed.agent_pid("client")))
        shutil.rmtree(Path(bed.links["client"].paths[0]).parent)  # it could not do that itself
    with Trials(bed.connect) as made:
        assert guard(made, bed, sysctl={KEY: "9"}).first["found"] == {KEY: "7"}
    assert found(bed) == "7"
    assert not locks(bed)
