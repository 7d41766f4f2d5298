from typing import Any

import pytest
from vm_parts import fleet, host, layout, parameters, refusal, vm_layout


def test_addresses_take_the_length_of_the_prefix_they_are_in() -> None:
    server = host("server1", data=["198.18.0.1", "fd63:6f6e:6e6c::1"], cpus=2, memory_mib=4000)
    (vm,) = vm_layout.lay_out(parameters(server)).vms
    assert vm.data == ("198.18.0.1/15", "fd63:6f6e:6e6c::1/48")
    assert (vm.name, vm.port, vm.memory_mib, vm.cpus) == ("server1", 22201, 4000, 2)


def test_no_two_interfaces_share_a_mac_address() -> None:
    macs = [mac for vm in fleet(8).vms for mac in vm.macs]
    assert len(set(macs)) == 16
    assert not set(macs) & {mac for vm in fleet(8, name="other").vms for mac in vm.macs}


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        ([], "hosts: got none, expected at least a server"),
        (
            [host("server1") | {"name": "Server-1"}],
            "host 'Server-1': expected lower-case letters and digits",
        ),
        (
            [host("server1", port=1023)],
            "host server1: ansible_port: got 1023, expected 1024 to 65535",
        ),
        (
            [host("server1", port=65536)],
            "host server1: ansible_port: got 65536, expected 1024 to 65535",
        ),
        (
            [host("server1", memory_mib=255)],
            "host server1: lab_vm_memory_mib: got 255, expected at least 256",
        ),
        ([host("server1", cpus=0)], "host server1: lab_vm_cpus: got 0, expected 1 to 64"),
        ([host("server1", cpus=65)], "host server1: lab_vm_cpus: got 65, expected 1 to 64"),
        (
            [host("server1"), host("client1", port=22201)],
            "host client1: ansible_port 22201 already belongs to server1",
        ),
        (
            [host("server1", data=["198.18.0.x"])],
            "host server1: got '198.18.0.x', expected an IP address",
        ),
        (
            [host("server1", data=["198.18.0.1/15"])],
            "host server1: got '198.18.0.1/15', expected an IP address",
        ),
        (
            [host("server1", data=["192.0.2.1"])],
            "host server1: address 192.0.2.1 is in none of the lab's prefixes "
            "(198.18.0.0/15, fd63:6f6e:6e6c::/48)",
        ),
        (
            [host("server1", data=["fd00::1"])],
            "host server1: address fd00::1 is in none of the lab's prefixes "
            "(198.18.0.0/15, fd63:6f6e:6e6c::/48)",
        ),
    ],
)
def test_a_bad_host_is_refused_in_one_line(hosts: list[dict[str, Any]], said: str) -> None:
    assert refusal(vm_layout.lay_out, parameters(*hosts)) == said


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", 1024),
        ("port", 65535),
        ("memory_mib", 256),
        ("cpus", 1),
        ("cpus", 64),
        ("name", "x" * 31),
    ],
)
def test_a_value_at_the_edge_is_taken(field: str, value: Any) -> None:
    (vm,) = vm_layout.lay_out(parameters(host("server1") | {field: value})).vms
    assert getattr(vm, field) == value


def test_a_bad_lab_name_is_refused() -> None:
    said = refusal(vm_layout.lay_out, parameters(host("server1"), name="lab.vm"))
    assert said.startswith("lab_name: got 'lab.vm', expected up to 24 lower-case letters")


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (host("server1", port=22209, data=["198.18.9.1"]), "host server1: listed twice"),
        (
            host("client1", port=22209, data=["198.18.0.1"]),
            "address 198.18.0.1 already belongs to server1",
        ),
    ],
)
def test_a_host_or_an_address_given_twice_is_refused(second: dict[str, object], said: str) -> None:
    with pytest.raises(layout.LabError, match=said):
        vm_layout.lay_out(parameters(host("server1", data=["198.18.0.1"]), second))


def test_a_prefix_that_is_none_is_refused() -> None:
    assert refusal(
        vm_layout.lay_out, parameters(host("server1"), data_prefixes=["198.18.0.1/15"])
    ) == ("lab_prefixes: got '198.18.0.1/15', expected a network: 198.18.0.1/15 has host bits set")
