import os
import re
from typing import Any

import pytest
from vm_parts import IMAGE, arguments, fleet, host, parameters, plan, vm_arguments, vm_layout


def links(machines: int) -> dict[str, list[str]]:
    lab = fleet(machines)
    return {vm.name: vm_arguments.links(lab, vm) for vm in lab.vms}


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
        words = vm_arguments.qemu_arguments(lab, vm, "tcg", IMAGE, "/x")
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
    assert vm_arguments.accelerator("kvm") == ["-accel", "kvm", "-cpu", "host"]
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
    lab = vm_layout.lay_out(parameters(host("server1", cpus=cpus)))
    (words,) = after("-smp", vm_arguments.qemu_arguments(lab, lab.vms[0], "tcg", IMAGE, "/x"))
    now, _, most = words.partition(",maxcpus=")
    assert int(now) == cpus
    assert int(most) >= max(2, cpus)


def test_files_make_a_guest_this_host_and_no_other() -> None:
    lab = fleet(3)
    made = vm_arguments.guest_files(lab, lab.vms[1])
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
    text: str = vm_arguments.configuration(lab, vm, kind, image)
    return text


def changed(**fields: Any) -> Any:
    return vm_layout.lay_out(parameters(host("server1"), host("client1", **fields)))


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
        vm_layout.lay_out(parameters(host("server1", data=["198.18.0.9"]), host("client1"))),
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
    bigger = vm_layout.lay_out(parameters(host("server1", memory_mib=4000), host("client1")))
    assert configuration(bigger) == configuration(fleet())
    assert configuration(bigger, "server1") != configuration(fleet(), "server1")
