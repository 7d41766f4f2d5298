"""What somebody else has changed since the tune is kept, named, and fails the revert's proof."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from role_beds import BEDS, Bed, Fuse, Module, SysctlBed, install, record_module, sysctl, tree

Changed = record_module.Changed
SOMAXCONN, TCP_MEM = "net.core.somaxconn", "net.ipv4.tcp_mem"


@pytest.fixture
def fuse(monkeypatch: pytest.MonkeyPatch) -> Fuse:
    fuse = Fuse()
    install(monkeypatch, fuse)
    return fuse


@pytest.fixture
def bed(tmp_path: Path, fuse: Fuse) -> Callable[[str], Any]:
    return lambda name: BEDS[name](tmp_path, fuse)


def old_record(bed: Bed) -> None:
    """Make the record one of format 1, as earlier versions wrote it."""
    record = json.loads(bed.record.read_text())
    for field in ("format", "placed", "kept"):
        record.pop(field, None)
    bed.record.write_text(json.dumps(record))


# Kernel parameters.


def test_a_value_changed_since_is_kept_and_the_others_go_back(bed: Any) -> None:
    host = bed("sysctl")
    host.tune()
    host.set(SOMAXCONN, "70000")
    line = f"{SOMAXCONN}: kept 70000, changed since the tune (set 10000, found 4096)"
    with pytest.raises(Changed, match=f"^{re.escape(line)}$"):
        host.revert()
    assert (host.get(SOMAXCONN), host.get(TCP_MEM)) == ("70000", "1 2 3")
    assert not (host.top / "etc" / "90-x.conf").exists()
    again = host.revert()  # says it once more and has nothing else to do
    assert again["remarks"] == [line]
    assert host.get(SOMAXCONN) == "70000"
    assert not host.record.exists()


def test_a_value_that_is_as_found_already_is_nothing_to_do(bed: Any) -> None:
    host = bed("sysctl")
    host.tune()
    host.set(SOMAXCONN, "4096")
    assert host.revert()["remarks"] == []
    assert host.get(SOMAXCONN) == "4096"


def test_a_tune_after_a_revert_that_kept_something_starts_anew(bed: Any) -> None:
    host = bed("sysctl")
    host.tune()
    host.set(SOMAXCONN, "5000")
    with pytest.raises(Changed, match="kept 5000"):
        host.revert()
    assert host.tune()["remarks"] == []
    assert host.get(SOMAXCONN) == "10000"
    assert host.revert()["remarks"] == []
    assert host.get(SOMAXCONN) == "5000"


def test_another_tune_of_a_changed_value_says_so_and_keeps_what_was_found_first(bed: Any) -> None:
    host = bed("sysctl")
    host.tune()
    host.set(SOMAXCONN, "8000")
    remarks = host.tune()["remarks"]
    assert remarks == [
        f"{SOMAXCONN}: found 8000, changed since the tune (set 10000, found 4096): set to 10000"
    ]
    assert host.tune()["remarks"] == []
    host.revert()
    assert host.get(SOMAXCONN) == "4096"


def test_a_value_raised_since_stays_somebody_elses_through_another_tune(bed: Any) -> None:
    """A plan that never lowers asks for the value that is there."""
    host = bed("sysctl")
    host.tune()
    host.set(SOMAXCONN, "20000")
    host.set(TCP_MEM, "4 5 26")
    remarks = host.tune(2)["remarks"]
    assert [line.partition(":")[0] for line in remarks] == [SOMAXCONN, TCP_MEM]
    assert all(line.endswith(": kept") for line in remarks)
    with pytest.raises(Changed, match=r"somaxconn: kept 20000, .*\(set 10000, found 4096\)"):
        host.revert()
    assert host.get(SOMAXCONN) == "20000"


def test_a_record_of_an_earlier_version_reverts_as_before(bed: Any) -> None:
    host = bed("sysctl")
    found = host.state()
    host.tune()
    old_record(host)
    host.revert()
    assert host.state() == found


def test_a_record_of_an_earlier_version_interrupted_before_its_proof_reverts(bed: Any) -> None:
    """It has the value found for `set` until then."""
    host = bed("sysctl")
    found = host.state()
    host.tune()
    record = json.loads(host.record.read_text())
    for entry in record["settings"].values():
        entry["set"] = entry["found"]
    host.record.write_text(json.dumps(record))
    old_record(host)
    before = host.record.read_text()
    host.revert()
    assert host.state() == found
    host.record.parent.mkdir()
    host.record.write_text(before)
    host.tune()
    host.tune(2)
    host.revert()
    assert host.state() == found


def test_a_file_of_an_earlier_version_is_no_changed_one(bed: Any) -> None:
    host = bed("limits")
    found = host.state()
    host.tune(1)
    old_record(host)
    assert host.tune(2)["remarks"] == []
    assert not list(host.top.rglob("*.changed*"))
    host.revert()
    assert host.state() == found


def test_a_refused_value_fails_and_leaves_the_record_for_another_try(
    bed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = bed("sysctl")
    found = host.state()
    host.tune()
    write = tree.write_key

    def refuse(key: str, value: str, root: Path) -> None:
        if key == SOMAXCONN:
            raise PermissionError(1, "Operation not permitted")
        write(key, value, root)

    monkeypatch.setattr(tree, "write_key", refuse)
    with pytest.raises(ValueError, match=r"somaxconn: wanted 4096, found 10000; .*not permitted"):
        host.revert()
    assert host.get(TCP_MEM) == "1 2 3"
    assert not (host.top / "etc" / "90-x.conf").exists()
    monkeypatch.setattr(tree, "write_key", write)
    host.revert()
    assert host.state() == found


def test_a_tune_that_could_not_be_undone_leaves_its_record(
    bed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it nobody would know what to put back."""
    host = bed("sysctl")
    found = host.state()

    def load(*_: Any) -> str:
        host.set(SOMAXCONN, "10000")
        return "sysctl: no such key"

    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    write = tree.write_key
    monkeypatch.setattr(tree, "write_key", refuse)

    def tune() -> Any:
        settings = [{"key": k, "value": "10000", "wanted": "10000"} for k in (SOMAXCONN, TCP_MEM)]
        sysctl.run_sysctl = load
        return sysctl.present(
            host.module(
                **{"settings": settings, "content": "x", "where": "host", "path": ""},
                **{"observed": {}, "reported": {}},
            )
        )

    with pytest.raises(tree.SysctlError, match=r"could not be undone: net\.core\.somaxconn"):
        tune()
    assert host.record.exists()
    monkeypatch.setattr(tree, "write_key", write)
    host.revert()
    assert host.state() == found


def test_nr_open_stays_above_a_limit_that_a_login_has(bed: Any) -> None:
    """Or pam_limits would end every session: setrlimit(2) refuses more than fs.nr_open."""
    host = bed("sysctl")
    host.set("fs.nr_open", "4000")
    host.tune()
    record = json.loads(host.record.read_text())
    record["settings"]["fs.nr_open"] = {"found": "1000", "set": "4000", "where": "host"}
    record["since"]["fs.nr_open"] = 1
    host.record.write_text(json.dumps(record))
    limits = host.top / "etc" / "limits.d" / "80-own.conf"
    limits.parent.mkdir()
    limits.write_text("# x hard nofile 9999\n* soft nofile 9999\n@app - nofile 2000\n")
    match = r"fs.nr_open: wanted 1000, found 4000: \S+/80-own.conf grants nofile 2000, and would"
    with pytest.raises(ValueError, match=match):
        host.revert()
    assert (host.get("fs.nr_open"), host.get(SOMAXCONN)) == ("4000", "4096")
    limits.write_text("@app - nofile 1000\n")
    host.revert()
    assert host.get("fs.nr_open") == "1000"


# Another boot.


@pytest.mark.parametrize("path", ["etc/90-x.conf", None])
@pytest.mark.parametrize("act", ["revert", "tune"])
def test_a_boot_after_a_kill_between_record_and_apply_is_healed(
    tmp_path: Path, fuse: Fuse, monkeypatch: pytest.MonkeyPatch, path: str | None, act: str
) -> None:
    class Host(SysctlBed):
        pass

    Host.path = path
    for at in range(1, 9):
        monkeypatch.setattr(sysctl, "boot_id", lambda: "the first")
        host = Host(tmp_path / str(at), fuse)
        with fuse.blowing(at) as blown:
            host.tune()
        monkeypatch.setattr(sysctl, "boot_id", lambda: "the second")
        # The kernel's own value of this boot, which is not the one that was found.
        host.set(SOMAXCONN, "512")
        booted = host.state()
        placed = "etc/90-x.conf" in booted[0]
        if placed:
            for line in booted[0]["etc/90-x.conf"].splitlines():
                host.set(*line.split(" = "))
        if act == "tune":
            assert host.tune()["remarks"] == []
            assert host.get(SOMAXCONN) == "10000"
        assert host.revert()["remarks"] == []
        assert host.get(SOMAXCONN) == ("4096" if placed else "512")
        assert not (host.top / "etc" / "90-x.conf").exists()
        assert not host.record.exists()
        if not blown[0]:
            break
    else:
        raise AssertionError("never whole")


def test_a_file_is_not_forgotten_where_the_next_boot_wants_none(
    tmp_path: Path, fuse: Fuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = SysctlBed(tmp_path, fuse)
    found = host.state()
    host.tune()
    monkeypatch.setattr(sysctl, "boot_id", lambda: "another")
    host.set(SOMAXCONN, "4096")
    host.set(TCP_MEM, "1 2 3")
    host.path = None
    host.tune()
    host.revert()
    assert host.state() == found


# Two labs on one kernel.


class Underlay:
    """A kernel that labs share, each with a record of its own."""

    def __init__(self, top: Path, fuse: Fuse) -> None:
        self.host = SysctlBed(top, fuse)
        self.top = top

    def module(self, lab: str, **params: Any) -> Module:
        module = self.host.module(**params)
        module.params["record"] = str(self.top / "var" / lab / "tune_sysctl.json")
        module.params["peers"] = f"{self.top}/var/*/tune_sysctl.json"
        return module

    def tune(self, lab: str, value: str) -> Any:
        sysctl.run_sysctl = lambda *_: self.host.set(SOMAXCONN, value) or ""
        settings = [{"key": SOMAXCONN, "value": value, "wanted": value}]
        module = self.module(
            lab,
            **{"settings": settings, "content": "x", "where": "underlay", "path": ""},
            **{"observed": {}, "reported": {}},
        )
        return sysctl.present(module)

    def revert(self, lab: str) -> Any:
        return sysctl.absent(self.module(lab))

    @property
    def now(self) -> str:
        return self.host.get(SOMAXCONN)


@pytest.fixture
def underlay(tmp_path: Path, fuse: Fuse) -> Underlay:
    return Underlay(tmp_path, fuse)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_clock_set_back_between_two_labs_does_not_turn_them_round(
    underlay: Underlay, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    monkeypatch.setattr("time.time_ns", iter([2_000, 1_000]).__next__)
    underlay.tune("a", "10000")
    underlay.tune("b", "20000")
    underlay.revert(order[0])
    assert underlay.now == ("20000" if order == "ab" else "10000")
    underlay.revert(order[1])
    assert underlay.now == "4096"


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_lab_tuned_by_an_earlier_version_stays_below_one_that_came_later(
    underlay: Underlay, order: str
) -> None:
    underlay.tune("a", "10000")
    path = underlay.top / "var" / "a" / "tune_sysctl.json"
    record = json.loads(path.read_text())
    del record["format"], record["placed"], record["kept"]
    record["since"] = {SOMAXCONN: 1_790_000_000_000_000_000}  # nanoseconds of the wall clock
    path.write_text(json.dumps(record))
    underlay.tune("b", "20000")
    underlay.revert(order[0])
    underlay.revert(order[1])
    assert underlay.now == "4096"


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_lab_below_that_is_tuned_again_comes_to_lie_on_top(
    underlay: Underlay, order: str
) -> None:
    underlay.tune("a", "10000")
    underlay.tune("b", "20000")
    assert underlay.tune("a", "20000")["remarks"] == []  # enough is there: nothing is set
    assert underlay.tune("a", "30000")["remarks"] == []
    underlay.revert(order[0])
    assert underlay.now == ("30000" if order == "ba" else "20000")
    underlay.revert(order[1])
    assert underlay.now == "4096"


def test_a_value_changed_between_two_labs_is_what_the_one_above_puts_back(
    underlay: Underlay,
) -> None:
    underlay.tune("a", "10000")
    underlay.host.set(SOMAXCONN, "15000")
    underlay.tune("b", "20000")
    with pytest.raises(Changed, match=r"kept 15000, changed since .* \(set 10000, found 4096\)"):
        underlay.revert("a")
    assert underlay.now == "20000"
    underlay.revert("b")
    assert underlay.now == "15000"


def test_a_revert_killed_after_it_handed_over_goes_on(underlay: Underlay) -> None:
    for at in range(1, 4):
        underlay.tune("a", "10000")
        underlay.tune("b", "20000")
        with underlay.host.fuse.blowing(at) as blown:
            underlay.revert("a")
        underlay.revert("a")
        assert underlay.now == "20000"
        underlay.revert("b")
        assert underlay.now == "4096"
    assert not blown[0]


# Files.

LIMITS = "etc/90-x.conf"


def test_a_file_changed_since_is_kept_and_named(bed: Any) -> None:
    host = bed("limits")
    host.tune()
    path = host.top / LIMITS
    path.write_text("mine now\n")
    with pytest.raises(Changed, match=f"^{path}: kept, changed since the tune$"):
        host.revert()
    assert path.read_text() == "mine now\n"
    assert not (host.top / "etc" / "service.d").exists()
    assert host.revert()["remarks"] == [f"{path}: kept, changed since the tune"]


def test_a_file_removed_since_is_not_brought_back(bed: Any) -> None:
    host = bed("limits")
    host.tune()
    path = host.top / LIMITS
    path.unlink()
    with pytest.raises(Changed, match=f"^{path}: kept, removed since the tune$"):
        host.revert()
    assert not path.exists()


def test_a_changed_file_that_a_tune_replaces_is_kept_beside_it(bed: Any) -> None:
    host = bed("limits")
    host.tune()
    path = host.top / LIMITS
    for number, text in ((1, "one\n"), (2, "two\n")):
        path.write_text(text)
        path.chmod(0o640)
        suffix = ".changed" if number == 1 else ".changed-2"
        assert host.tune()["remarks"] == [
            f"{path}: changed since the tune: overwritten, the changed text is in {path}{suffix}"
        ]
        backup = path.with_name(path.name + suffix)
        assert backup.read_text() == text
        assert backup.stat().st_mode & 0o777 == 0o640
    path.write_text("one\n")
    assert f"{path}.changed" in host.tune()["remarks"][0]
    assert not path.with_name(path.name + ".changed-3").exists()
    host.revert()
    assert path.read_text() == "by hand\n"


def test_a_changed_file_that_is_no_longer_wanted_is_kept(bed: Any) -> None:
    host = bed("limits")
    host.tune(1)
    path = host.top / "etc" / "only-at-first" / "90-x.conf"
    path.write_text("mine now\n")
    line = f"{path}: kept, changed since the tune"
    assert host.tune(2)["remarks"] == [line]
    assert path.read_text() == "mine now\n"
    with pytest.raises(Changed, match=line):
        host.revert()
    assert path.read_text() == "mine now\n"


def test_a_found_file_comes_back_byte_by_byte_with_its_mode(bed: Any) -> None:
    host = bed("limits")
    path = host.top / LIMITS
    text = b"caf\xe9\r\nno end of line"
    path.write_bytes(text)
    path.chmod(0o600)
    host.tune()
    assert path.stat().st_mode & 0o777 == 0o600
    host.revert()
    assert path.read_bytes() == text
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_a_killed_write_left_goes_with_the_revert(bed: Any) -> None:
    host = bed("limits")
    found = host.state()
    host.tune()
    for name in (".connlab-90-x.conf", ".connlab-90-x.conf.changed"):
        (host.top / "etc" / name).write_text("half")
    (host.record.parent / ".connlab-state.json").write_text("half")
    host.revert()
    assert host.state() == found
    assert not host.record.parent.exists()


# Addresses, tables and routes.


def test_an_alias_with_other_bits_is_kept(bed: Any) -> None:
    host = bed("alias")
    host.tune()
    host.ip.have["198.18.1.2"] = "198.18.1.2/24"
    line = r"data0: 198.18.1.2/24 kept, changed since the tune \(set 198.18.1.2/32, found none\)"
    with pytest.raises(Changed, match=f"^{line}$"):
        host.revert()
    assert host.ip.have == {"198.18.1.1": "198.18.1.1/15", "198.18.1.2": "198.18.1.2/24"}


def test_a_tune_that_wants_an_alias_no_more_keeps_one_with_other_bits(bed: Any) -> None:
    host = bed("alias")
    host.tune()
    host.ip.have["198.18.1.2"] = "198.18.1.2/24"
    assert host.tune(2)["remarks"][0].startswith("data0: 198.18.1.2/24 kept, changed since")
    host.revert()
    assert host.ip.have == {"198.18.1.1": "198.18.1.1/15", "198.18.1.2": "198.18.1.2/24"}


def test_a_table_changed_since_is_kept_with_what_would_delete_it_off(bed: Any) -> None:
    host = bed("router")
    host.tune()
    host.tool.table = "changed"
    stops = []
    systemctl = host.systemctl
    host.systemctl = lambda *words: stops.append(words) or systemctl(*words)
    with pytest.raises(Changed, match=r"^table inet connlab_nat: kept, changed since the tune$"):
        host.revert()
    assert host.tool.table == "changed"
    assert not any("--now" in words for words in stops)  # its ExecStop deletes the table
    assert (host.enabled, host.state()[0].get("etc/90-x.nft")) == (set(), None)
    assert tree.read_key("net.ipv4.ip_forward", host.top / "proc") == "0"


def test_a_table_changed_since_is_loaded_anew_by_a_tune_that_says_so(bed: Any) -> None:
    host = bed("router")
    host.tune()
    host.tool.table = "changed"
    assert host.tune()["remarks"] == ["table inet connlab_nat: changed since the tune: reloaded"]
    host.tool.table = "changed"
    assert host.tune(3)["remarks"] == ["table inet connlab_nat: changed since the tune: kept"]
    assert host.tool.table == "changed"


def test_a_parameter_that_goes_along_and_was_changed_since_is_kept(bed: Any) -> None:
    host = bed("router")
    host.tune()
    key = "net.ipv4.conf.data0.forwarding"
    tree.key_path(key, host.top / "proc").write_text("7")
    with pytest.raises(Changed, match=f"^{key}: kept 7, changed since the tune .set 1, found 1.$"):
        host.revert()
    assert tree.read_key(key, host.top / "proc") == "7"
    assert tree.read_key("net.ipv4.ip_forward", host.top / "proc") == "0"


def test_a_route_changed_since_is_kept(bed: Any) -> None:
    host = bed("client")
    host.tune()
    host.ip.main["198.19.7.0/24"] = ("198.18.0.9", "data0")
    with pytest.raises(Changed) as caught:
        host.revert()
    assert str(caught.value) == (
        "route 198.19.7.0/24: kept 198.18.0.9 data0, changed since the tune "
        "(set 198.18.201.1, found none)"
    )
    assert host.ip.main == {
        **{"198.18.0.0/15": ("", "data0"), "198.19.7.0/24": ("198.18.0.9", "data0")}
    }


def test_a_tune_names_routes_that_were_changed(bed: Any) -> None:
    host = bed("client")
    host.tune()
    host.ip.main["198.19.7.0/24"] = ("198.18.0.9", "data0")
    host.ip.main["198.19.0.0/16"] = ("198.18.0.9", "data0")
    assert host.tune(2)["remarks"] == [
        "route 198.19.0.0/16: found 198.18.0.9 data0, changed since the tune: set to 198.18.202.1",
        "route 198.19.7.0/24: found 198.18.0.9 data0, changed since the tune: kept",
    ]
    assert host.ip.main["198.19.7.0/24"] == ("198.18.0.9", "data0")


def test_a_rule_put_into_the_roles_table_is_kept_and_named(bed: Any) -> None:
    host = bed("policy")
    host.tune()
    strange = "priority 5001 from 198.18.0.9 ipproto 6 sport 9 table 5001"
    host.ip.rules.append(strange)
    with pytest.raises(Changed, match=f"^rule {strange}: kept, changed since the tune$"):
        host.revert()
    assert (host.ip.rules, host.ip.routes) == ([strange], [])


def test_a_proxys_configuration_changed_since_is_kept_and_its_processes_end(bed: Any) -> None:
    host = bed("proxy")
    host.tune()
    path = host.top / "etc" / "proxy.cfg"
    path.write_text("mine\n")
    with pytest.raises(Changed, match=f"^{path}: kept, changed since the tune$"):
        host.revert()
    assert (host.units, path.read_text()) == ({}, "mine\n")
    assert host.revert()["remarks"] == [f"{path}: kept, changed since the tune"]
    assert not host.record.exists()


@pytest.mark.parametrize("name", ["sysctl", "router", "client", "limits"])
def test_a_value_of_the_tune_before_is_somebody_elses_once_it_was_replaced(
    bed: Any, name: str
) -> None:
    host = bed(name)
    host.tune(1)
    record = json.loads(host.record.read_text())
    if name == "router":  # as a tune of other values would have left it half way
        record["settings"]["net.ipv4.ip_forward"]["earlier"] = ["2"]
        host.record.write_text(json.dumps(record))
    host.tune(2)
    record = json.loads(host.record.read_text())
    assert not any("earlier" in entry for entry in record["settings"].values())
    assert (record.get("tables", []), record.get("gateways", {})) == ([], {})
    assert all(len(sums) == 1 for sums in record["placed"].values())
