"""Small experiments over real processes in namespaces, and settings that go back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sides
from agents import running, until
from beds import Bed

from bench.agent.trials import journal
from bench.errors import LabError
from bench.hosts import trials as controller
from bench.hosts.trials import Trials

ROOT = Path(__file__).parents[2]
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
    with pytest.raises(LabError, match=r"^host client: guard: .*Invalid argument"):
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
        line = rf"^host client: {name}.*: changed by process {pid} of another experiment: wait"
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
        told = guard(other, bed, sysctl={"net.ipv4.tcp_tw_reuse": "0"})
        assert set(told.first["found"]) == {"net.ipv4.tcp_tw_reuse"}
    assert found(bed) == "7"


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


FILE = "/etc/security/limits.d/zz-connlab-test.conf"
LINE = "nobody hard nofile 64\n"


def kill_guard(bed: Bed, **args) -> None:
    """Have a guard change the client, and kill it: it puts nothing back."""
    with Trials(bed.connect) as made:
        guard(made, bed, **args)
        os.kill(bed.agent_pid("client"), signal.SIGKILL)
        assert until(lambda: not running(bed.agent_pid("client")))
        shutil.rmtree(Path(bed.links["client"].paths[0]).parent)  # it could not do that itself


@pytest.fixture
def no_file():
    Path(FILE).unlink(missing_ok=True)
    yield
    Path(FILE).unlink(missing_ok=True)


@pytest.mark.usefixtures("no_file")
@pytest.mark.parametrize(
    "change",
    [
        {"sysctl": {KEY: "7"}},
        {"sysctl": {KEY: "7", "net.ipv4.tcp_tw_reuse": "0"}},
        {"tables": {"inet connlab_test": "chain c { }"}},
        {"files": {FILE: LINE}},
        {"sysctl": {KEY: "7"}, "tables": {"ip connlab_test": ""}, "files": {FILE: LINE}},
    ],
    ids="-".join,
)
def test_the_next_guard_puts_back_what_one_that_was_killed_has_left(change, bed: Bed) -> None:
    before = state(bed)
    kill_guard(bed, **change)
    assert state(bed) != before
    with Trials(bed.connect) as made:
        first = guard(made, bed, sysctl={KEY: "9"}).first["found"]
        assert first == {KEY: before[0]}
        assert state(bed) == ("9", *before[1:])
    assert state(bed) == before
    assert not locks(bed) and not journals(bed)


def state(bed: Bed) -> tuple[str, ...]:
    """What the guards of these tests change."""
    reuse = bed.net.run("client", "sysctl", "-n", "net.ipv4.tcp_tw_reuse").strip()
    tables = bed.net.run("client", "nft", "list", "tables")
    return found(bed), reuse, tables, str(Path(FILE).exists())


def journals(bed: Bed, host: str = "client") -> list[Path]:
    """Journals of guards in a host's network namespace."""
    command = "from bench.agent.trials.journal import network; print(network())"
    here = bed.net.run(host, "env", f"PYTHONPATH={ROOT}", sys.executable, "-c", command).strip()
    return [path for path in Path(journal.FOLDER).glob("*") if f'"{here}"' in path.read_text()]


def test_a_guard_that_is_refused_half_way_leaves_no_journal(trials: Trials, bed: Bed) -> None:
    with pytest.raises(LabError, match=r"sysctl: got kernel\.panic"):
        guard(trials, bed, sysctl={KEY: "7", "kernel.panic": "1"})
    assert not journals(bed)


def test_guards_within_one_another_that_were_killed_go_back_in_order(
    bed: Bed, tmp_path: Path
) -> None:
    before = found(bed)
    with Trials(bed.connect) as outer, Trials(bed.connect) as inner:
        host = bed.inventory().hosts["client"]
        pids = []
        for made, value in ((outer, "7"), (inner, "9")):
            made.guard(host, sysctl={KEY: value})
            pids.append(bed.agent_pid("client"))
            shutil.rmtree(Path(bed.links["client"].paths[0]).parent)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert until(lambda: not any(map(running, pids)))
    assert found(bed) == "9"
    with Trials(bed.connect) as made:
        assert guard(made, bed, sysctl={KEY: "11"}).first["found"] == {KEY: before}
    assert found(bed) == before
    assert not locks(bed) and not journals(bed)


def test_a_guard_puts_back_its_own_value_where_one_within_it_was_killed(bed: Bed) -> None:
    before = found(bed)
    host = bed.inventory().hosts["client"]
    with Trials(bed.connect) as outer:
        outer.guard(host, sysctl={KEY: "7"})
        with Trials(bed.connect) as inner:
            inner.guard(host, sysctl={KEY: "9"})
            os.kill(bed.agent_pid("client"), signal.SIGKILL)
            assert until(lambda: not running(bed.agent_pid("client")))
            shutil.rmtree(Path(bed.links["client"].paths[0]).parent)
        assert found(bed) == "9"
    assert found(bed) == before
    assert not journals(bed)


def test_what_an_administrator_has_changed_meanwhile_is_kept_and_named(bed: Bed) -> None:
    line = rf"^host client: not put back: sysctl {KEY}: expected 7, as an exp.* found 33: kept$"
    with pytest.raises(LabError, match=line), Trials(bed.connect) as made:
        guard(made, bed, sysctl={KEY: "7"})
        bed.net.run("client", "sysctl", "-qw", f"{KEY}=33")
    assert found(bed) == "33"
    assert not journals(bed)


@pytest.mark.usefixtures("no_file")
def test_healing_keeps_what_an_administrator_has_changed_since(
    bed: Bed, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_guard(
        bed,
        sysctl={KEY: "7", "net.ipv4.tcp_tw_reuse": "0"},
        tables={"inet connlab_test": ""},
        files={FILE: LINE},
    )
    bed.net.run("client", "sysctl", "-qw", f"{KEY}=33")
    bed.net.run("client", "nft", "delete table inet connlab_test; add table inet connlab_test")
    Path(FILE).write_text("somebody else's\n")
    with Trials(bed.connect) as made:
        guard(made, bed, sysctl={"net.ipv4.tcp_retries2": "9"})
    kept = [
        f"file {FILE}: changed since an experiment made it: kept",
        "table inet connlab_test: without the mark of the guard that made it: kept",
        f"sysctl {KEY}: expected 7, as an experiment set it, found 33: kept",
    ]
    assert capsys.readouterr().err.splitlines() == [f"connlab: host client: {k}" for k in kept]
    assert found(bed) == "33"
    assert "connlab_test" in bed.net.run("client", "nft", "list", "tables")
    assert Path(FILE).read_text() == "somebody else's\n"
    assert state(bed)[1] == "2"  # what nobody else has changed went back
    assert not journals(bed)


def test_what_healing_keeps_is_named_also_where_the_guard_fails_then(
    bed: Bed, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_guard(bed, sysctl={KEY: "7"})
    bed.net.run("client", "sysctl", "-qw", f"{KEY}=33")
    with pytest.raises(LabError, match=r"got kernel\.panic"), Trials(bed.connect) as made:
        guard(made, bed, sysctl={"kernel.panic": "1"})
    line = f"sysctl {KEY}: expected 7, as an experiment set it, found 33: kept"
    assert capsys.readouterr().err == f"connlab: host client: not put back: {line}\n"


def test_all_that_was_not_put_back_is_named(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    both = r"tcp_tw_reuse.*; .*tcp_fin_timeout"
    with pytest.raises(LabError, match=both), Trials(bed.connect) as made:
        guard(made, bed, sysctl={KEY: "7", "net.ipv4.tcp_tw_reuse": "0"})
        bed.net.run("client", "sysctl", "-qw", f"{KEY}=33", "net.ipv4.tcp_tw_reuse=1")
    assert capsys.readouterr().err.count("connlab: host client: not put back: sysctl ") == 2


def test_another_network_namespace_is_left_alone(bed: Bed) -> None:
    kill_guard(bed, sysctl={KEY: "7"})
    bed.net.run("server", "sysctl", "-qw", f"{KEY}=7")
    with Trials(bed.connect) as made:
        server = bed.inventory().hosts["server"]
        made.begin(server, "guard", sysctl={"net.ipv4.tcp_tw_reuse": "0"})
    assert (found(bed), found(bed, "server")) == ("7", "7")
    assert len(journals(bed)) == 1
    with Trials(bed.connect) as made:
        guard(made, bed)
    assert found(bed) != "7"
    assert not journals(bed)


@pytest.mark.usefixtures("no_file")
def test_a_revert_puts_back_what_a_guard_that_was_killed_has_left(bed: Bed) -> None:
    before = state(bed)
    kill_guard(bed, sysctl={KEY: "7"}, tables={"inet connlab_test": ""}, files={FILE: LINE})
    left = state(bed)
    assert revert(bed, "--check")["changed"]
    assert state(bed) == left and journals(bed)
    reverted = revert(bed)
    assert reverted["healed"] == [
        f"file {FILE}",
        "table inet connlab_test",
        f"sysctl {KEY}",
    ]
    assert state(bed) == before and not journals(bed)
    assert not revert(bed)["changed"]


def test_a_revert_names_what_somebody_else_has_changed_since(bed: Bed) -> None:
    kill_guard(bed, sysctl={KEY: "7"})
    bed.net.run("client", "sysctl", "-qw", f"{KEY}=33")
    assert revert(bed)["msg"] == (
        f"guard: sysctl {KEY}: expected 7, as an experiment set it, found 33: kept"
    )
    assert found(bed) == "33" and not journals(bed)


def revert(bed: Bed, *words: str) -> dict:
    """What the module of the role guard says on the client."""
    command = ["ansible", "all", "-i", "client,", "-c", "local", "-m", "connlab_guard"]
    command += ["-e", f"ansible_python_interpreter={sys.executable}", *words]
    role = ROOT / "roles" / "guard"
    settings = {
        "ANSIBLE_LIBRARY": str(role / "library"),
        "ANSIBLE_MODULE_UTILS": str(role / "module_utils"),
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.oneline",
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        [*bed.net.enter("client"), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **settings},
    )
    return json.loads(done.stdout[done.stdout.index("{") :])
