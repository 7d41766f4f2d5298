"""Inventories as ``ansible-inventory --list`` gives them, and what is wrong with bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import inventory
from bench.errors import InputError


def listing(**changes: dict[str, Any]) -> dict[str, Any]:
    variables: dict[str, dict[str, Any]] = {
        "server1": {"ansible_host": "192.0.2.1", "lab_data_address": "198.18.0.1"},
        "client1": {"lab_data_address": "198.18.1.1"},
        "client2": {"lab_data_address": "198.18.2.1"},
    }
    for name, change in changes.items():
        variables[name].update(change)
    return {
        "_meta": {"hostvars": variables},
        "servers": {"hosts": ["server1"]},
        "clients": {"children": ["rack1"]},
        "rack1": {"hosts": ["client1", "client2"]},
    }


def test_hosts_and_groups() -> None:
    found = inventory.from_listing("x", listing())
    assert [host.name for host in found.of("servers")] == ["server1"]
    assert [host.name for host in found.of("clients")] == ["client1", "client2"]
    assert found.hosts["server1"].address == "192.0.2.1"
    assert found.hosts["client1"].address == "client1"
    assert not found.underlay
    assert found.substrate == "remote"


@pytest.mark.parametrize(("kind", "end"), [("local", ""), ("vm", ".vm")])
def test_labs_of_one_name_and_of_two_kinds_have_a_state_directory_each(kind: str, end: str) -> None:
    lab = {"lab_substrate": kind, "lab_dir": "/checkout/.lab", "lab_name": "x"}
    found = inventory.from_listing("x", listing(server1=lab))
    assert found.state == Path(f"/checkout/.lab/x{end}")
    shipped = inventory.load([inventory.DEFAULT.with_name(kind)], ["lab_name=x"])
    assert shipped.state == inventory.DEFAULT.parents[1] / ".lab" / f"x{end}"


@pytest.mark.parametrize("missing", ["lab_dir", "lab_name"])
def test_where_the_lab_made_no_hosts_there_is_no_state_directory(missing: str) -> None:
    lab = {"lab_dir": "/checkout/.lab", "lab_name": "x"}
    del lab[missing]
    assert inventory.from_listing("x", listing(server1=lab)).state is None
    lab[missing] = "{{ x }}"
    assert inventory.from_listing("x", listing(server1=lab)).state is None


def test_fields_of_the_scenario() -> None:
    assert inventory.from_listing("x", listing()).settings == {}
    fields = {"server_ports": [5000, 5001], "watch": {"__ansible_unsafe": "none"}}
    found = inventory.from_listing("x", listing(server1={"set": fields}))
    assert found.settings == {"server_ports": [5000, 5001], "watch": "none"}
    other = inventory.from_listing("x", listing(client1={"set": fields}))
    assert other.settings == {}  # what holds for all is on the first host too


@pytest.mark.parametrize(
    "unread",
    [
        None,
        "{{ x }}",
        "hold_seconds=1",
        ["hold_seconds"],
        {"hold_seconds": "{{ x }}"},
        {"{{ x }}": 1},
        {"server_ports": ["{% if x %}5000{% endif %}"]},
    ],
)
def test_fields_that_only_ansible_can_read_are_left_to_it(unread: object) -> None:
    assert inventory.from_listing("x", listing(server1={"set": unread})).settings == {}


@pytest.mark.parametrize(
    ("word", "public"), [(True, True), ("true", True), ("True", True), (False, False)]
)
def test_the_word_is_said_in_full_or_not_at_all(word: object, public: bool) -> None:
    assert inventory._word("here", "lab_allow_public", word) is public
    assert inventory._word("here", "lab_allow_public", "false") is False
    for other in (1, "yes", "on", None, "", [True]):
        with pytest.raises(InputError, match=r"^here: lab_allow_public: got .*, expected true or"):
            inventory._word("here", "lab_allow_public", other)


def test_a_prefix_may_be_as_large_as_a_16() -> None:
    whole = inventory.from_listing("x", listing(client1={"alias_ips_prefix": "198.19.0.0/16"}))
    found = whole.hosts["client1"].data_addresses
    assert len(found) == 1 + 65_534
    assert (found[1], found[-1]) == ("198.19.0.1", "198.19.255.254")


def test_aliases_by_count_list_and_prefix() -> None:
    counted = {"alias_ips_first": "198.18.1.1", "alias_ips_count": 3}
    found = inventory.from_listing("x", listing(client1=counted))
    assert found.hosts["client1"].data_addresses == ("198.18.1.1", "198.18.1.2", "198.18.1.3")
    listed = {"alias_ips_list": ["198.18.1.9", "198.18.1.1"]}
    found = inventory.from_listing("x", listing(client1=listed))
    assert found.hosts["client1"].data_addresses == ("198.18.1.1", "198.18.1.9")
    block = {"alias_ips_prefix": "198.18.9.0/30"}
    found = inventory.from_listing("x", listing(client1=block))
    assert found.hosts["client1"].data_addresses == ("198.18.1.1", "198.18.9.1", "198.18.9.2")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"lab_data_address": "198.18.2.1"}, "host client2: address 198.18.2.1 overlaps host cl"),
        ({"lab_data_address": "10.0.0.1"}, "host client1: lab_data_address: got 10.0.0.1, exp"),
        ({"lab_data_address": "nine"}, "host client1: lab_data_address: got 'nine', expected an"),
        ({"lab_data_address": "{{ x }}"}, "lab_data_address: got the template '{{ x }}', expecte"),
        ({"lab_data_address": None}, "host client1: lab_data_address: missing, expected"),
        ({"alias_ips_list": ["198.18.1.2", "198.18.1.2"]}, "alias_ips_list: got 198.18.1.2 twice"),
        ({"alias_ips_list": "198.18.1.2"}, "alias_ips_list: got '198.18.1.2', expected a list"),
        (
            {
                "alias_ips_first": "198.18.1.1",
                "alias_ips_count": 2,
                "lab_prefixes": ["198.18.1.0/31"],
            },
            "alias_ips_count: got 198.18.1.2, expected an address in 198.18.1.0/31",
        ),
        (
            {"alias_ips_first": "198.19.255.254", "alias_ips_count": 2},
            "alias_ips_count: got 198.19.255.255, the broadcast address of 198.18.0.0/15",
        ),
        ({"lab_allow_public": "maybe"}, "lab_allow_public: got 'maybe', expected true or false"),
        ({"lab_allow_public": 1}, "lab_allow_public: got 1, expected true or false"),
        ({"alias_ips_first": "198.18.1.1", "alias_ips_count": "\u00b2"}, "alias_ips_count: got "),
        ({"alias_ips_first": "198.18.1.1", "alias_ips_count": "9" * 5000}, "expected 0 to 65536"),
        ({"alias_ips_first": ["198.18.1.1"]}, "alias_ips_first: got ['198.18.1.1'], expected text"),
        ({"lab_data_address": {"a": 1}}, "lab_data_address: got {'a': 1}, expected text in one l"),
        ({"lab_data_address": "198.18.1.1\n"}, "lab_data_address: got '198.18.1.1\\n', expected"),
        ({"lab_prefixes": [{}]}, "lab_prefixes: '{}' does not appear to be"),
        ({"lab_prefixes": 5}, "lab_prefixes: got 5, expected a list of networks"),
        ({"alias_ips_list": 5}, "alias_ips_list: got 5, expected a list of addresses"),
        ({"alias_ips_list": [None]}, "alias_ips_list: got 'None', expected an IP address"),
        ({"lab_routed_addresses": {"a": 1}}, "lab_routed_addresses: got {'a': 1}, expected a list"),
        ({"ansible_port": float("nan")}, "ansible_port: got 'nan', expected 1 to 65535"),
        ({"ansible_port": True}, "ansible_port: got 'True', expected 1 to 65535"),
        ({"ansible_host": "a..b"}, "ansible_host: got 'a..b', expected an address or a host name"),
        ({"ansible_host": "x" * 300}, "ansible_host: got 'xxx"),
        ({"ansible_host": "\ud800"}, "ansible_host: got '\\ud800', expected text in one line"),
        ({"ansible_user": "lab\x1b[31m"}, "ansible_user: got 'lab\\x1b[31m', expected text in one"),
        ({"alias_ips_first": "198.18.1.1", "alias_ips_count": -1}, "alias_ips_count: got '-1'"),
        ({"alias_ips_prefix": "198.18.1.7/24"}, "alias_ips_prefix: got '198.18.1.7/24', expected"),
        ({"alias_ips_prefix": "198.18.0.0/15"}, "expected at most 65536 addresses"),
        ({"ansible_port": "x"}, "ansible_port: got 'x', expected 1 to 65535"),
        ({"lab_prefixes": []}, "lab_prefixes: got [], expected a list of networks"),
    ],
)
def test_bad_hosts_get_one_line(change: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        inventory.from_listing("x", listing(client1=change))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("group", ["servers", "clients"])
def test_a_group_without_hosts(group: str) -> None:
    broken = listing()
    broken[group] = {}
    with pytest.raises(InputError, match=f"inventory x: group {group}: empty, expected a host"):
        inventory.from_listing("x", broken)


def test_a_path_that_does_not_exist() -> None:
    with pytest.raises(InputError, match="got /nowhere, expected a file or directory that exists"):
        inventory.load([Path("/nowhere")])


def test_reads_through_ansible(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(
        "servers: {hosts: {a: {lab_data_address: 198.18.0.1}}}\n"
        "clients: {hosts: {b: {lab_data_address: '{{ address }}'}}}\n"
    )
    with pytest.raises(InputError, match="host b: lab_data_address: got the template"):
        inventory.load([tmp_path])


def test_what_ansible_cannot_read_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("servers: [\n")
    with pytest.raises(InputError, match=r"^inventory .*: ") as caught:
        inventory.load([tmp_path / "hosts.yml"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [0, 3, "40", "abc"])
def test_another_number_of_clients_than_there_are(number: object) -> None:
    with pytest.raises(InputError, match=f"lab_clients: got {number!r}, expected 1 to the number"):
        inventory.from_listing(
            "x", listing(client1={"lab_clients": number}, server1={"lab_clients": number})
        )


def test_a_host_in_both_groups() -> None:
    broken = listing()
    broken["clients"] = {"hosts": ["client1", "server1"]}
    with pytest.raises(InputError, match="host server1: in servers and in clients"):
        inventory.from_listing("x", broken)


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "/etc/x",
        "..",
        ".ssh",
        "-oProxyCommand=x",
        "a/b",
        "a b",
        "a\nb",
        "",
        "ü",
        "a" * 254,
    ],
)
def test_a_host_has_a_name_that_can_be_a_directorys(name: str) -> None:
    broken = listing()
    broken["_meta"]["hostvars"][name] = {"lab_data_address": "198.18.3.1"}
    broken["rack1"]["hosts"].append(name)
    with pytest.raises(InputError) as caught:
        inventory.from_listing("x", broken)
    assert "expected a name of 1 to 253 of the characters A-Z a-z 0-9 . _ -" in str(caught.value)
    assert repr(name)[:40] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ((), [], "the listing: got [], expected a mapping"),
        (("_meta",), None, "_meta: got None, expected a mapping"),
        (("_meta", "hostvars"), [1], "_meta.hostvars: got [1], expected a mapping"),
        (("_meta", "hostvars", "client1"), "x", "host client1: got 'x', expected a mapping"),
        (("servers",), ["server1"], "group servers: got ['server1'], expected a mapping"),
        (("servers", "hosts"), "server1", "group servers: hosts: got 'server1', expected a list"),
        (("servers", "hosts"), {"server1": {}}, "group servers: hosts: got {'server1': {}}, exp"),
        (("clients", "children"), [None], "group clients: children: got [None], expected a list"),
        (("rack1",), 7, "group rack1: got 7, expected a mapping"),
        (("rack1", "hosts"), [["a"] * 90], "rack1: hosts: got [['a', 'a',"),
    ],
)
def test_a_listing_of_the_wrong_shape(path: tuple[str, ...], value: object, said: str) -> None:
    broken: Any = {"all": listing()}
    at, key = broken, "all"
    for step in path:
        at, key = at[key], step
    at[key] = value
    with pytest.raises(InputError) as caught:
        inventory.from_listing("x", broken["all"])
    assert str(caught.value).startswith(f"inventory x: {said}") or said in str(caught.value)
    assert len(str(caught.value)) < 200


def test_groups_within_each_other_end() -> None:
    listed = listing()
    listed["rack1"]["children"] = ["clients", "rack1"]
    assert len(inventory.from_listing("x", listed).of("clients")) == 2


def test_a_listing_that_is_no_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "ansible-inventory"
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    for text in ("hello", "[" * 200_000, "\\377"):
        fake.write_text(f"#!/bin/sh\nprintf '{text}'\n")
        fake.chmod(0o755)
        with pytest.raises(InputError, match=r"^inventory .*: ansible-inventory: no JSON: "):
            inventory.load([tmp_path])


PUBLIC = {"lab_prefixes": ["0.0.0.0/0", "::/0"]}


@pytest.mark.parametrize(
    "change",
    [
        {"lab_data_address": "8.8.8.8"},
        {"alias_ips_list": ["8.8.8.8"]},
        {"alias_ips_first": "8.8.8.8", "alias_ips_count": 1},
        {"alias_ips_prefix": "8.8.8.8/32"},
        {"lab_routed_addresses": ["8.8.8.8"]},
        {"lab_data_address6": "2606:4700::1111"},
        {"alias_ips_first6": "2606:4700::1111", "alias_ips_count": 1},
    ],
)
def test_public_addresses_are_refused_in_every_field(change: dict[str, Any]) -> None:
    for host in ("client1", "server1"):
        own = {"lab_data_address": "198.18.0.1" if host == "server1" else "198.18.1.1"}
        with pytest.raises(InputError) as caught:
            inventory.from_listing("x", listing(**{host: {**own, **PUBLIC, **change}}))
        assert str(caught.value).startswith(f"inventory x: host {host}: ")
        assert ", a public address, which only lab_allow_public: true lets in" in str(caught.value)
        word = {"lab_allow_public": True}
        found = inventory.from_listing("x", listing(**{host: {**own, **PUBLIC, **change, **word}}))
        assert found.hosts[host].public


def test_addresses_come_past_no_prefix_by_a_link_or_as_another_family() -> None:
    for text, said in {
        "fd63::1%eth0": "an address of one link (RFC 4007, scoped), which no lab may use",
        "::ffff:198.18.1.1": "an IPv4 address in IPv6 (RFC 4291, mapped), which no lab may use",
    }.items():
        fields = {**PUBLIC, "lab_data_address6": text, "lab_allow_public": True}
        with pytest.raises(InputError) as caught:
            inventory.from_listing("x", listing(client1=fields))
        assert said in str(caught.value)


@pytest.mark.parametrize("name", ["../../x", "", "a/b", ".x"])
def test_a_lab_has_a_name_that_can_be_a_directorys(name: str) -> None:
    with pytest.raises(InputError, match=r"^inventory x: lab_name: got '.*', expected a name of 1"):
        inventory.from_listing("x", listing(server1={"lab_name": name}))
