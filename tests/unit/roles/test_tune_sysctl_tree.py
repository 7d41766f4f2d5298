import errno
import os
from pathlib import Path
from typing import Any

import pytest
from tune_loader import load

record_module = load("lab_common", "module_utils", "connlab_record")
tree_module = load("lab_common", "module_utils", "connlab_sysctl_tree")

SOMAXCONN = "net.core.somaxconn"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree of files that takes any value, as /proc/sys would take good ones."""
    for key, value in {SOMAXCONN: "4096\n", "net.ipv4.tcp_mem": "1\t2\t3\n"}.items():
        path = tree_module.key_path(key, tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)
    return tmp_path


def loader(root: Path, values: dict[str, str], said: str = "") -> Any:
    def load_values() -> str:
        for key, value in values.items():
            tree_module.write_key(key, value, root)
        return said

    return load_values


def tuned(root: Path, value: str) -> dict[str, Any]:
    """Tune as one lab does: remember, then set."""
    record: dict[str, Any] = record_module.empty_record("tune_sysctl")
    found = tree_module.read_key(SOMAXCONN, root)
    tree_module.remember(record, {SOMAXCONN: found}, "underlay")
    tree_module.write_key(SOMAXCONN, value, root)
    record["settings"][SOMAXCONN]["set"] = value
    return record


def test_keys_are_read_with_single_spaces_and_a_missing_one_is_none(root: Path) -> None:
    assert tree_module.read_key("net.ipv4.tcp_mem", root) == "1 2 3"
    assert tree_module.read_key("net.ipv4.nothing", root) is None
    path = tree_module.key_path("net.ipv4.conf.eth0/5.forwarding", root)
    assert path == root / "net/ipv4/conf/eth0.5/forwarding"


def test_probe_on_the_real_tree() -> None:
    seen = tree_module.probe([SOMAXCONN, "net.ipv4.nothing"])
    assert int(seen[SOMAXCONN]["found"]) > 0
    assert seen["net.ipv4.nothing"] == {"found": None, "writable": False}


def test_the_first_value_found_stays_the_one_found() -> None:
    record = record_module.empty_record("tune_sysctl")
    tree_module.remember(record, {"a": "1"}, "host")
    tree_module.remember(record, {"a": "2", "b": "9"}, "host")
    assert {key: entry["found"] for key, entry in record["settings"].items()} == {
        "a": "1",
        "b": "9",
    }


def test_a_value_that_did_not_hold_is_named_and_everything_is_undone(root: Path) -> None:
    wanted = {SOMAXCONN: "65535", "net.ipv4.tcp_mem": "4 5 6"}
    load_values = loader(root, {SOMAXCONN: "65535"}, 'sysctl: setting key "net.ipv4.tcp_mem"')
    with pytest.raises(tree_module.SysctlError) as caught:
        tree_module.apply(wanted, load_values, root)
    text = str(caught.value)
    assert "net.ipv4.tcp_mem: wanted 4 5 6, found 1 2 3" in text
    assert "setting key" in text and "everything was undone" in text
    assert tree_module.read_key(SOMAXCONN, root) == "4096"


def test_a_write_that_is_refused_midway_undoes_the_earlier_ones(root: Path) -> None:
    def load_values() -> str:
        tree_module.write_key(SOMAXCONN, "65535", root)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    wanted = {SOMAXCONN: "65535", "net.ipv4.tcp_mem": "4 5 6"}
    with pytest.raises(tree_module.SysctlError) as caught:
        tree_module.apply(wanted, load_values, root)
    assert str(caught.value) == (
        "net.ipv4.tcp_mem: wanted 4 5 6, found 1 2 3 (Invalid argument); everything was undone"
    )
    assert tree_module.read_key(SOMAXCONN, root) == "4096"


def test_a_value_that_cannot_be_undone_is_named_and_the_others_are_undone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = tree_module.write_key
    wanted = {SOMAXCONN: "65535", "net.core.rmem_max": "7", "net.ipv4.tcp_mem": "4 5 6"}
    write("net.core.rmem_max", "5", root)
    load_values = loader(root, {SOMAXCONN: "65535", "net.core.rmem_max": "7"})

    def refuse(key: str, value: str, root: Path) -> None:
        if value == "4096":
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        write(key, value, root)

    def load_and_lock() -> str:
        said: str = load_values()
        monkeypatch.setattr(tree_module, "write_key", refuse)
        return said

    match = "could not be undone: net.core.somaxconn: wanted 4096, found 65535"
    with pytest.raises(tree_module.SysctlError, match=match):
        tree_module.apply(wanted, load_and_lock, root)
    assert tree_module.read_key("net.core.rmem_max", root) == "5"


def test_values_that_hold_pass_whatever_sysctl_says(root: Path) -> None:
    tree_module.apply({SOMAXCONN: "5000"}, loader(root, {SOMAXCONN: "5000"}, "a warning"), root)
    assert tree_module.read_key(SOMAXCONN, root) == "5000"


def test_revert_puts_back_and_twice_is_fine(root: Path) -> None:
    record = tuned(root, "65535")
    assert tree_module.revert(record, {}, True, root) == ({SOMAXCONN: ("65535", "4096")}, [])
    assert tree_module.read_key(SOMAXCONN, root) == "4096"
    assert tree_module.revert(record, {}, True, root) == ({}, [])


def test_revert_in_check_mode_writes_nothing(root: Path) -> None:
    record = tuned(root, "65535")
    changed, _ = tree_module.revert(record, {}, False, root)
    assert changed == {SOMAXCONN: ("65535", "4096")}
    assert tree_module.read_key(SOMAXCONN, root) == "65535"


def test_revert_that_the_kernel_refuses_names_the_key() -> None:
    record = record_module.empty_record("tune_sysctl")
    key = "kernel.random.boot_id"
    tree_module.remember(record, {key: "not the boot id"}, "host")
    with pytest.raises(tree_module.SysctlError, match=r"boot_id: wanted not the boot id, found"):
        tree_module.revert(record, {}, True)


@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "b", "a"), ("b", "a", "c"), ("a", "c")])
def test_labs_that_share_a_kernel_leave_in_any_order(root: Path, order: tuple[str, ...]) -> None:
    """Nobody loses a value while it is in use, and the last one restores what the first found."""
    values = {"a": "10000", "b": "20000", "c": "30000"}
    if len(order) == 2:
        del values["b"]
    labs = {name: tuned(root, value) for name, value in values.items()}
    for name in order:
        own = labs.pop(name)
        tree_module.revert(own, labs, True, root)
        now = int(tree_module.read_key(SOMAXCONN, root))
        assert all(now >= int(values[other]) for other in labs)
    assert tree_module.read_key(SOMAXCONN, root) == "4096"


def test_peers_are_the_other_labs_of_this_boot(tmp_path: Path) -> None:
    for name, boot in {
        "own": record_module.boot_id(),
        "other": record_module.boot_id(),
        "old": "an earlier boot",
    }.items():
        record = {**record_module.empty_record("tune_sysctl"), "boot_id": boot}
        record_module.save_record(tmp_path / name / "tune_sysctl.json", record)
    pattern = f"{tmp_path}/*/tune_sysctl.json"
    peers = tree_module.load_peers(pattern, f"{tmp_path}/own/tune_sysctl.json", "tune_sysctl")
    assert list(peers) == [f"{tmp_path}/other/tune_sysctl.json"]
    assert tree_module.load_peers("", "x", "tune_sysctl") == {}
    assert tree_module.load_peers(f"{tmp_path}/none/*/x.json", "x", "tune_sysctl") == {}
