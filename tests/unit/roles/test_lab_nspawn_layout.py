import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tune_loader import load

layout = load("lab_common", "module_utils", "connlab_layout")
hosts_filter = load("lab_nspawn", "filter_plugins", "lab_hosts")

PREFIXES = ["198.18.0.0/15", "fd63:6f6e:6e6c::/48"]


def entry(name: str, management: str, *data: str) -> dict[str, Any]:
    return {"name": name, "management": management, "data": list(data)}


SERVER = entry("server1", "192.0.2.1", "198.18.0.1", "fd63:6f6e:6e6c::1")
CLIENT = entry("client1", "192.0.2.2", "198.18.1.1")


def lay_out(*hosts: dict[str, Any], name: str = "connlab", prefix: str = "192.0.2.0/24") -> Any:
    return layout.lay_out(name, list(hosts), prefix, PREFIXES, "data0", "mgmt0", 1024)


def test_addresses_take_the_length_of_the_prefix_they_are_in() -> None:
    lab = lay_out(SERVER, CLIENT)
    assert lab.hosts[0].management == "192.0.2.1/24"
    assert lab.hosts[0].data == ("198.18.0.1/15", "fd63:6f6e:6e6c::1/48")
    assert lab.controller == "192.0.2.254/32"
    assert lab.management_route == "192.0.2.0/26"


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        ([], "got none"),
        ([SERVER, entry("client1", "192.0.2.1", "198.18.1.1")], "already belongs to server1"),
        ([SERVER, entry("client1", "192.0.2.2", "198.18.0.1")], "already belongs to server1"),
        ([entry("server1", "192.0.2.254", "198.18.0.1")], "already belongs to the controller"),
        ([SERVER, entry("server1", "192.0.2.2", "198.18.1.1")], "listed twice"),
        ([entry("server1", "192.0.2.1", "10.0.0.1")], "outside 198.18.0.0/15"),
        ([entry("server1", "10.0.0.1", "198.18.0.1")], "outside 192.0.2.0/24"),
        ([entry("server1", "192.0.2.1", "198.18.0.x")], "198.18.0.x"),
        ([entry("server-1", "192.0.2.1", "198.18.0.1")], "lower-case letters and digits"),
        ([entry("switch", "192.0.2.1", "198.18.0.1")], "lower-case letters and digits"),
    ],
)
def test_a_bad_layout_is_refused_by_name(hosts: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(layout.LabError, match=said):
        lay_out(*hosts)


@pytest.mark.parametrize(
    "name", ["", "..", "Lab", "1lab", "a/b", "lab.vm", "x" * 25, "cp", "image", "ssh"]
)
def test_a_bad_lab_name_is_refused(name: str) -> None:
    with pytest.raises(layout.LabError) as failed:
        lay_out(SERVER, name=name)
    assert str(failed.value) == (
        f"lab_name: got {name!r}, expected up to 24 lower-case letters, digits and dashes, and "
        "none of cp, image, ssh"
    )


@pytest.mark.parametrize("prefix", ["192.0.2.0/25", "192.0.2.1/24", "fd00::/64", "lab"])
def test_a_bad_management_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(layout.LabError, match="lab_mgmt_prefix"):
        lay_out(SERVER, prefix=prefix)


@pytest.mark.parametrize(
    ("connections", "entries"),
    [(1, 2), (2, 2), (3, 4), (50_000, 65_536), (1_000_000, 1_048_576), (10**9, 16_777_216)],
)
def test_table_is_the_next_power_of_two_within_the_kernels_bounds(
    connections: int, entries: int
) -> None:
    assert layout.ehash_entries(connections) == entries


@given(st.integers(min_value=1, max_value=layout.EHASH_MAX))
def test_table_has_a_bucket_per_connection_and_less_than_two(connections: int) -> None:
    entries = layout.ehash_entries(connections)
    assert entries & (entries - 1) == 0
    assert connections <= entries < max(2 * connections, 4)


@given(st.from_regex(layout.LAB_NAME, fullmatch=True), st.sampled_from(["ctl", "x"]))
def test_interface_names_fit_the_kernel(lab: str, suffix: str) -> None:
    name = layout.interface_name(lab, suffix)
    assert len(name.encode()) <= layout.NAME_MAX
    assert name.endswith(suffix)


@given(st.text(max_size=10), st.text(max_size=10))
def test_mac_addresses_are_local_and_unicast(host: str, interface: str) -> None:
    first, *rest = layout.mac_address("connlab", host, interface).split(":")
    assert int(first, 16) & 0b11 == 0b10
    assert len(rest) == 5
    assert layout.mac_address("connlab", host, interface) == ":".join([first, *rest])


@given(
    st.from_regex(layout.LAB_NAME, fullmatch=True),
    st.from_regex(layout.LAB_NAME, fullmatch=True),
    st.from_regex(layout.HOST_NAME, fullmatch=True).filter(lambda name: name != "switch"),
)
def test_no_lab_takes_another_labs_host_for_its_own(lab: str, other: str, host: str) -> None:
    for name in (layout.namespace(lab, host), layout.cgroup_name(lab, host)):
        assert layout.host_of(lab, name) == host
        if other != lab:
            assert layout.host_of(other, name) is None


def test_the_switch_is_no_host() -> None:
    assert layout.host_of("connlab", "connlab-switch") is None


def test_what_bears_no_labs_name_is_no_labs() -> None:
    for name in ("server1", "server1.connlab", "other-server1", "connlabserver1"):
        assert layout.host_of("connlab", name) is None
    assert layout.host_of("connlab", "connlab-server1") == "server1"


@given(st.sets(st.integers(min_value=1, max_value=253), min_size=1))
def test_the_route_covers_the_hosts_and_little_else(numbers: set[int]) -> None:
    addresses = [f"192.0.2.{number}" for number in numbers]
    route = ipaddress.ip_network(layout.management_route("192.0.2.0/24", addresses))
    assert all(ipaddress.ip_address(address) in route for address in addresses)
    assert route.num_addresses <= max(64, 2 * max(numbers))


@pytest.mark.parametrize(
    ("addresses", "routes", "resolv_conf", "said"),
    [
        ({"192.0.2.2": "eth0"}, {}, "", "address 192.0.2.2 (eth0)"),
        ({}, {"192.0.2.0/28": "eth0"}, "", "route 192.0.2.0/28 (eth0)"),
        ({}, {"192.0.2.9": "eth0"}, "", "route 192.0.2.9 (eth0)"),
        ({}, {}, "search x\nnameserver 192.0.2.53\n", "name server 192.0.2.53 (resolv.conf)"),
        # Elsewhere, or wider than the lab's own route, which then takes nothing from it.
        ({"192.0.2.80": "eth0", "fe80::1": "eth0"}, {"default": "192.0.2.77"}, "", None),
        ({}, {"192.0.0.0/16": "eth0"}, "nameserver fe80::1%eth0\nnameserver ::1\n", None),
    ],
)
def test_a_prefix_that_the_machine_uses_is_noticed(
    addresses: dict[str, str], routes: dict[str, str], resolv_conf: str, said: str | None
) -> None:
    assert layout.in_use("192.0.2.0/26", addresses, routes, resolv_conf) == said


def test_filter_takes_hosts_of_groups_once_and_in_order() -> None:
    hostvars = {
        "server1": {"ansible_host": "192.0.2.1", "lab_data_address": "198.18.0.1"},
        "client1": {
            "ansible_host": "192.0.2.2",
            "lab_data_address": "198.18.1.1",
            "lab_data_address6": "fd63:6f6e:6e6c:1::1",
        },
    }
    groups = {"servers": ["server1"], "clients": ["client1", "server1"], "pool": ["client9"]}
    found = hosts_filter.lab_nspawn_hosts(["servers", "clients", "routers"], groups, hostvars)
    assert found == [
        {"name": "server1", "management": "192.0.2.1", "data": ["198.18.0.1"]},
        {
            "name": "client1",
            "management": "192.0.2.2",
            "data": ["198.18.1.1", "fd63:6f6e:6e6c:1::1"],
        },
    ]
