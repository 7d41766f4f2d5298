import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tune_loader import ROLES, load
from vm_parts import parameters, vm_arguments, vm_layout

hosts_filter = load("lab_vm", "filter_plugins", "lab_vm")


def test_filter_takes_hosts_of_groups_once_and_in_order() -> None:
    hostvars = {
        "server1": {
            "ansible_port": 22201,
            "lab_data_address": "198.18.0.1",
            "lab_vm_memory_mib": 4000,
            "lab_vm_cpus": 2,
        },
        "client1": {
            "ansible_port": 22202,
            "lab_data_address": "198.18.1.1",
            "lab_data_address6": "fd63:6f6e:6e6c:1::1",
        },
    }
    groups = {"servers": ["server1"], "clients": ["client1", "server1"], "pool": ["client9"]}
    found = hosts_filter.lab_vm_hosts(["servers", "clients", "routers"], groups, hostvars, 1024, 1)
    assert found == [
        {
            "name": "server1",
            "port": 22201,
            "memory_mib": 4000,
            "cpus": 2,
            "data": ["198.18.0.1"],
        },
        {
            "name": "client1",
            "port": 22202,
            "memory_mib": 1024,
            "cpus": 1,
            "data": ["198.18.1.1", "fd63:6f6e:6e6c:1::1"],
        },
    ]


def test_the_server_comes_first_whatever_hosts_there_are_besides() -> None:
    names = {"servers": "server1", "clients": "client1", "routers": "router1", "proxies": "proxy1"}
    hostvars = {
        name: {"ansible_port": 22201 + turn, "lab_data_address": f"198.18.{turn}.1"}
        for turn, name in enumerate(names.values())
    }
    groups = {group: [name] for group, name in names.items()}
    wanted = yaml.safe_load((ROLES / "lab_vm/defaults/main.yml").read_text())["lab_vm_groups"]
    found = hosts_filter.lab_vm_hosts(wanted, groups, hostvars, 1024, 1)
    fleet = vm_layout.lay_out(parameters(*found))
    # The data links of all meet in it.
    hub = vm_arguments.links(fleet, fleet.vms[0])
    assert fleet.vms[0].name == "server1"
    for vm in fleet.vms[1:]:
        assert f"hubport,id=hub-{vm.name},hubid=0,netdev=to-{vm.name}" in hub
        assert vm_arguments.links(fleet, vm)[1].endswith(f"path=../server1/{vm.name}.sock")


def test_filters_go_by_the_names_that_the_role_uses() -> None:
    assert hosts_filter.FilterModule().filters() == {
        "lab_vm_hosts": hosts_filter.lab_vm_hosts,
        "lab_vm_thash": hosts_filter.lab_vm_thash,
    }


@pytest.mark.parametrize(
    ("connections", "buckets"),
    [(0, 2), (1, 2), (2, 2), (3, 4), (65_537, 131_072), (1_000_000, 1_048_576), (10**9, 1 << 24)],
)
def test_table_is_the_next_power_of_two_up_to_a_bound(connections: int, buckets: int) -> None:
    assert hosts_filter.lab_vm_thash(connections) == buckets


@given(st.integers(min_value=1, max_value=1 << 24))
def test_table_has_a_bucket_per_connection_and_less_than_two(connections: int) -> None:
    buckets = hosts_filter.lab_vm_thash(connections)
    assert buckets & (buckets - 1) == 0
    assert connections <= buckets < max(2 * connections, 4)
