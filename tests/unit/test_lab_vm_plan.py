import dataclasses
import os
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tune_loader import load
from vm_parts import IMAGE, fleet, host, layout, parameters, plan

hosts_filter = load("lab_vm", "filter_plugins", "lab_vm")


def test_addresses_take_the_length_of_the_prefix_they_are_in() -> None:
    server = host("server1", data=["198.18.0.1", "fd63:6f6e:6e6c::1"], cpus=2, memory_mib=4000)
    (vm,) = plan.lay_out(parameters(server)).vms
    assert vm.data == ("198.18.0.1/15", "fd63:6f6e:6e6c::1/48")
    assert (vm.name, vm.port, vm.memory_mib, vm.cpus) == ("server1", 22201, 4000, 2)


def test_no_two_interfaces_share_a_mac_address() -> None:
    macs = [mac for vm in fleet(8).vms for mac in vm.macs]
    assert len(set(macs)) == 16
    assert not set(macs) & {mac for vm in fleet(8, name="other").vms for mac in vm.macs}


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        ([], "hosts: got none, expected a server at least"),
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
            "host client1: ansible_port 22201 is server1's already",
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
            "host server1: 192.0.2.1 is in none of the lab's prefixes "
            "(198.18.0.0/15, fd63:6f6e:6e6c::/48)",
        ),
        (
            [host("server1", data=["fd00::1"])],
            "host server1: fd00::1 is in none of the lab's prefixes "
            "(198.18.0.0/15, fd63:6f6e:6e6c::/48)",
        ),
    ],
)
def test_a_bad_host_is_refused_in_one_line(hosts: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(layout.LabError) as refused:
        plan.lay_out(parameters(*hosts))
    assert str(refused.value) == said


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
    (vm,) = plan.lay_out(parameters(host("server1") | {field: value})).vms
    assert getattr(vm, field) == value


@pytest.mark.parametrize("name", ["", "..", "Lab", "1lab", "a/b", "x" * 25])
def test_a_bad_lab_name_is_refused(name: str) -> None:
    with pytest.raises(layout.LabError) as refused:
        plan.lay_out(parameters(host("server1"), name=name))
    assert str(refused.value) == (
        f"lab_name: got {name!r}, expected up to 24 lower-case letters, digits and dashes, and "
        "none of cp, image, ssh"
    )


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (host("server1", port=22209, data=["198.18.9.1"]), "host server1: got it twice"),
        (host("client1", port=22209, data=["198.18.0.1"]), "host client1: 198.18.0.1 is server1's"),
    ],
)
def test_a_host_or_an_address_given_twice_is_refused(second: dict[str, object], said: str) -> None:
    with pytest.raises(layout.LabError, match=said):
        plan.lay_out(parameters(host("server1", data=["198.18.0.1"]), second))


def test_a_prefix_that_is_none_is_refused() -> None:
    with pytest.raises(layout.LabError) as refused:
        plan.lay_out(parameters(host("server1"), data_prefixes=["198.18.0.1/15"]))
    assert str(refused.value) == (
        "lab_prefixes: got '198.18.0.1/15', expected a network: 198.18.0.1/15 has host bits set"
    )


def links(machines: int) -> dict[str, list[str]]:
    lab = fleet(machines)
    return {vm.name: plan.links(lab, vm) for vm in lab.vms}


def test_a_machine_alone_has_a_data_interface_that_leads_nowhere() -> None:
    assert links(1) == {"server1": ["-netdev", "hubport,id=data,hubid=0"]}


def test_two_machines_share_one_stream() -> None:
    end = "stream,id=data,server={},addr.type=unix,addr.path={}"
    assert links(2) == {
        "server1": ["-netdev", end.format("on", "client1.sock")],
        "client1": ["-netdev", end.format("off", "../server1/client1.sock")],
    }


def test_more_machines_meet_in_a_hub_inside_the_first() -> None:
    server, *clients = links(4).values()
    assert server[:2] == ["-netdev", "hubport,id=data,hubid=0"]
    assert len(server) == 14
    for number, client in enumerate(clients, 1):
        name = f"client{number}"
        assert f"stream,id=to-{name},server=on,addr.type=unix,addr.path={name}.sock" in server
        assert f"hubport,id=hub-{name},hubid=0,netdev=to-{name}" in server
        assert client == [
            "-netdev",
            f"stream,id=data,server=off,addr.type=unix,addr.path=../server1/{name}.sock",
        ]


@pytest.mark.parametrize("machines", [2, 3, 4, 9])
def test_every_stream_has_one_listener_and_one_caller(machines: int) -> None:
    ends: dict[str, list[str]] = {"on": [], "off": []}
    for name, words in links(machines).items():
        options = [dict(re.findall(r"([\w.]+)=([^,]+)", word)) for word in words[1::2]]
        assert len({option["id"] for option in options}) == len(options)
        for option in options:
            if "server" in option:
                path = os.path.normpath(f"/hosts/{name}/{option['addr.path']}")
                ends[option["server"]].append(path)
    assert len(set(ends["on"])) == machines - 1
    assert sorted(ends["on"]) == sorted(ends["off"])


def arguments(directory: str = "/lab/hosts/server1", kind: str = "tcg", **other: Any) -> list[str]:
    lab = fleet(**other)
    words: list[str] = plan.qemu_arguments(lab, lab.vms[0], kind, IMAGE, directory)
    return words


def after(option: str, words: list[str]) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == option]


def test_management_is_a_forwarded_port_and_no_way_out() -> None:
    assert after("-netdev", arguments())[0] == (
        "user,id=mgmt,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:22201-10.0.2.15:22"
    )


@pytest.mark.parametrize("machines", [1, 2, 4])
def test_a_machine_listens_on_127_0_0_1_and_on_unix_sockets_alone(machines: int) -> None:
    lab = fleet(machines)
    for vm in lab.vms:
        words = plan.qemu_arguments(lab, vm, "tcg", IMAGE, "/x")
        assert re.findall(r"(?:tcp|udp|inet|telnet|vnc|host):\S*", " ".join(words)) == [
            f"tcp:127.0.0.1:{vm.port}-10.0.2.15:22"
        ]
        backends = {word.split(",")[0] for word in after("-netdev", words)}
        assert backends <= {"user", "stream", "hubport"}
        assert after("-qmp", words) == ["unix:qmp.sock,server=on,wait=off"]
        # Without it QEMU adds a network of its own, without restrict=on.
        assert "-nodefaults" in words


def test_a_full_disk_is_reported_to_the_guest_and_does_not_stop_it() -> None:
    (drive,) = after("-drive", arguments())
    assert drive.startswith("file=/lab/hosts/server1/disk.qcow2,")
    assert {"werror=report", "rerror=report", "format=qcow2"} <= set(drive.split(","))


def test_a_comma_in_a_path_is_doubled() -> None:
    (drive,) = after("-drive", arguments("/a,b/,c"))
    assert drive.startswith("file=/a,,b/,,c/disk.qcow2,if=none,")


def test_the_guests_kernel_gets_its_name_and_the_labs_parameters() -> None:
    words = arguments(boot_args=["thash_entries=1048576", "mitigations=off"])
    (append,) = after("-append", words)
    boot = append.split()
    assert boot[-3:] == ["systemd.hostname=server1", "thash_entries=1048576", "mitigations=off"]
    assert {"root=LABEL=connlab", "rw", "console=ttyS0"} <= set(boot)
    assert after("-kernel", words) == [f"{IMAGE}/vmlinuz"]
    assert after("-initrd", words) == [f"{IMAGE}/initrd.img"]


def test_interfaces_are_in_the_slots_that_the_image_names_them_by() -> None:
    lab = fleet()
    devices = after("-device", arguments())
    management, data = lab.vms[0].macs
    assert f"virtio-net-pci,netdev=mgmt,addr=3,mac={management}" in devices
    assert f"virtio-net-pci,netdev=data,addr=4,tx=timer,mac={data}" in devices


def test_kvm_runs_the_machines_own_processor() -> None:
    assert plan.accelerator("kvm") == ["-accel", "kvm", "-cpu", "host"]
    found = arguments(kind="kvm")
    assert (after("-accel", found), after("-cpu", found)) == (["kvm"], ["host"])


def test_emulation_has_a_thread_per_processor_and_a_translation_cache_that_is_counted() -> None:
    (words,) = after("-accel", arguments(kind="tcg"))
    kind, *options = words.split(",")
    assert kind == "tcg"
    assert "thread=multi" in options
    (size,) = (int(word.partition("=")[2]) for word in options if word.startswith("tb-size="))
    assert size < plan.OVERHEAD_MIB


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_a_machine_can_always_have_a_second_processor(cpus: int) -> None:
    lab = plan.lay_out(parameters(host("server1", cpus=cpus)))
    (words,) = after("-smp", plan.qemu_arguments(lab, lab.vms[0], "tcg", IMAGE, "/x"))
    now, _, most = words.partition(",maxcpus=")
    assert int(now) == cpus
    assert int(most) >= max(2, cpus)


def test_files_make_a_guest_this_host_and_no_other() -> None:
    lab = fleet(3)
    made = plan.guest_files(lab, lab.vms[1])
    assert made["etc/hostname"] == "client1\n"
    assert made["etc/hosts"].splitlines()[2:] == [
        "198.18.0.1 server1",
        "198.18.1.1 client1",
        "198.18.2.1 client2",
    ]
    data = made["etc/systemd/network/10-data0.network"]
    assert "Name=data0" in data.splitlines()
    assert re.findall("^Address=(.*)", data, re.M) == ["198.18.1.1/15"]
    management = made["etc/systemd/network/10-mgmt0.network"]
    assert "Name=mgmt0" in management.splitlines()
    assert re.findall("^Address=(.*)", management, re.M) == ["10.0.2.15/24"]
    assert not any("Gateway" in text or "[Route]" in text for text in made.values())


def configuration(lab: Any, name: str = "client1", kind: str = "tcg", image: str = IMAGE) -> str:
    (vm,) = (each for each in lab.vms if each.name == name)
    text: str = plan.configuration(lab, vm, kind, image)
    return text


def changed(**fields: Any) -> Any:
    return plan.lay_out(parameters(host("server1"), host("client1", **fields)))


@pytest.mark.parametrize(
    "lab",
    [
        changed(memory_mib=2048),
        changed(cpus=2),
        changed(port=22299),
        changed(data=["198.18.1.9"]),
        changed(data=["198.18.1.1", "fd63:6f6e:6e6c:1::1"]),
        fleet(name="other"),
        fleet(boot_args=["thash_entries=2048"]),
        fleet(data_prefixes=["198.18.0.0/16"]),
        fleet(data_interface="data1"),
        fleet(management_interface="mgmt1"),
        # Its /etc/hosts names the others.
        fleet(3),
        plan.lay_out(parameters(host("server1", data=["198.18.0.9"]), host("client1"))),
    ],
)
def test_the_configuration_changes_with_all_that_a_running_machine_cannot_take_over(
    lab: Any,
) -> None:
    assert configuration(lab) != configuration(fleet())


def test_the_configuration_changes_with_accelerator_and_image_and_only_then() -> None:
    same = configuration(fleet())
    assert configuration(fleet()) == same
    assert configuration(fleet(), kind="kvm") != same
    assert configuration(fleet(), image="/lab/image/2") != same


def test_another_machines_size_does_not_concern_a_machine() -> None:
    bigger = plan.lay_out(parameters(host("server1", memory_mib=4000), host("client1")))
    assert configuration(bigger) == configuration(fleet())
    assert configuration(bigger, "server1") != configuration(fleet(), "server1")


def running(lab: Any, **other: Any) -> dict[str, Any]:
    return {
        vm.name: plan.Found(
            **{
                "alive": True,
                "image": IMAGE,
                "configuration": configuration(lab, vm.name),
                "traces": True,
                **other,
            }
        )
        for vm in lab.vms
    }


def decide(lab: Any, found: dict[str, Any], kind: str = "tcg", image: str = IMAGE) -> Any:
    return plan.decide(lab, kind, image, found)


@pytest.mark.parametrize("machines", [1, 2, 4])
def test_a_fleet_as_wanted_is_left_alone(machines: int) -> None:
    lab = fleet(machines)
    made = decide(lab, running(lab))
    assert made.empty
    assert made == plan.Plan()


def test_nothing_there_is_made_from_nothing() -> None:
    made = decide(fleet(3), {})
    assert not made.empty
    assert made.start == ["server1", "client1", "client2"]
    assert not (made.stop or made.wipe or made.remove)
    assert made.reasons["server1"] == "it was not running"


@pytest.mark.parametrize(
    ("change", "stop", "wipe", "reason"),
    [
        ({"alive": False}, False, False, "it was not running"),
        ({"image": "/lab/image/0"}, True, True, "the image changed"),
        ({"image": "/lab/image/0", "alive": False}, False, True, "the image changed"),
        ({"configuration": "other"}, True, False, "its configuration"),
        # Made by an older version, or its note is lost.
        ({"configuration": ""}, True, False, "its configuration"),
    ],
)
def test_what_is_wrong_with_a_client_is_healed_and_no_other_is_touched(
    change: dict[str, Any], stop: bool, wipe: bool, reason: str
) -> None:
    lab = fleet(3)
    found = running(lab)
    found["client1"] = dataclasses.replace(found["client1"], **change)
    made = decide(lab, found)
    assert made.start == ["client1"]
    assert made.stop == ["client1"] * stop
    assert made.wipe == ["client1"] * wipe
    assert made.remove == []
    assert made.reasons == {"client1": reason}


def test_all_start_anew_with_the_one_where_their_data_links_meet() -> None:
    lab = fleet(3)
    found = running(lab)
    found["server1"].alive = False
    made = decide(lab, found)
    assert made.start == ["server1", "client1", "client2"]
    assert made.stop == ["client1", "client2"]
    assert made.wipe == []
    assert made.reasons == {
        "server1": "it was not running",
        "client1": "its data link ends in one that starts anew",
        "client2": "its data link ends in one that starts anew",
    }


def test_another_image_is_for_all() -> None:
    lab = fleet()
    made = decide(lab, running(lab), image="/lab/image/2")
    assert made.stop == made.wipe == made.start == ["server1", "client1"]
    assert set(made.reasons.values()) == {"the image changed"}


def test_another_accelerator_is_for_all_and_keeps_the_disks() -> None:
    lab = fleet()
    made = decide(lab, running(lab), kind="kvm")
    assert made.stop == made.start == ["server1", "client1"]
    assert made.wipe == []


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (2, 1), (4, 3)])
def test_another_number_of_machines_changes_every_data_link(before: int, after: int) -> None:
    made = decide(fleet(after), running(fleet(before)))
    gone = [f"client{number}" for number in range(after, before)]
    kept = [vm.name for vm in fleet(min(before, after)).vms]
    assert made.remove == gone
    assert made.stop == kept
    assert made.start == [vm.name for vm in fleet(after).vms]


@pytest.mark.parametrize("found", [plan.Found(alive=True), plan.Found(traces=True)])
def test_a_machine_that_is_not_wanted_is_removed(found: Any) -> None:
    lab = fleet()
    made = decide(lab, running(lab) | {"client7": found})
    assert made.remove == ["client7"]
    assert made.reasons == {"client7": "not in the inventory's groups any more"}
    assert not (made.start or made.stop or made.wipe)
    assert not made.empty


def test_a_disk_of_which_nothing_is_known_is_not_used() -> None:
    """It may stand on another image, or be half made: the note is written after it."""
    lab = fleet()
    made = decide(lab, running(lab) | {"client1": plan.Found(traces=True)})
    assert made.wipe == ["client1"]


def test_machines_that_do_not_fit_are_refused_by_their_sum() -> None:
    vms = plan.lay_out(
        parameters(host("server1", memory_mib=4000), host("client1", memory_mib=5200))
    ).vms
    plan.check_memory(vms, 10_312)
    with pytest.raises(layout.LabError) as refused:
        plan.check_memory(vms, 10_311)
    assert str(refused.value) == (
        "server1 4000 + client1 5200 MiB, 300 MiB for each QEMU and 512 MiB to spare are "
        "10312 MiB, and MemAvailable is 10311 MiB: lower connections or lab_vm_memory_mib, "
        "or free memory"
    )


def test_without_a_machine_to_start_memory_does_not_matter() -> None:
    plan.check_memory([], 0)


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
