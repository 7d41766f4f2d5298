"""The lab's virtual machines as data: sizes, QEMU arguments, and what must be done.

Pure functions: nothing here reads or changes the machine.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.connlab_files import network_file
from ansible.module_utils.connlab_layout import HOST_NAME, LAB_NAME, LabError, mac_address

GUEST_ADDRESS = "10.0.2.15"
"""The guest's own address on QEMU's user network, whose default is 10.0.2.0/24."""

OVERHEAD_MIB = 300
"""Memory of a QEMU process beside the guest's, MiB: its translation cache (tb-size) and itself."""

TRANSLATION_CACHE_MIB = 256

SPARE_MIB = 512
"""Memory that the machine keeps, MiB."""

TX = "tx=timer"
"""Frames are gathered for 150 µs instead of waking QEMU's I/O thread for each: between two
emulated machines 5.6k connections a second instead of 4.2k."""

MEMORY_MIN_MIB = 256
"""Below this, the Debian kernel and systemd do not boot."""


@dataclass(frozen=True)
class Vm:
    """One virtual machine."""

    name: str
    port: int
    """Port of 127.0.0.1 that is forwarded to its sshd."""
    data: tuple[str, ...]
    """Addresses on the data plane, with prefix lengths."""
    memory_mib: int
    cpus: int
    macs: tuple[str, str]
    """Of its management and its data interface."""


@dataclass(frozen=True)
class Fleet:
    """All virtual machines of a lab; the first one is where their data links meet."""

    name: str
    vms: tuple[Vm, ...]
    management_interface: str
    data_interface: str
    boot_args: tuple[str, ...]


NOT_LABS = ("cp", "image", "ssh")
"""Directories beside the labs' own in the state directory."""


def check_name(name: str) -> None:
    """Refuse what is no name of a lab: a directory of that name is made, and removed.

    :raises LabError: naming the field, the value and what was expected.
    """
    if not LAB_NAME.fullmatch(name) or name in NOT_LABS:
        raise LabError(
            f"lab_name: got {name!r}, expected up to 24 lower-case letters, digits and dashes, "
            f"and none of {', '.join(NOT_LABS)}"
        )


def lay_out(params: Mapping[str, Any]) -> Fleet:
    """The fleet from the module's parameters.

    :raises LabError: naming the field, the value and what was expected.
    """
    check_name(params["name"])
    prefixes = [_network(text) for text in params["data_prefixes"]]
    vms: list[Vm] = []
    for host in params["hosts"]:
        _check(host, vms)
        planes = (params["management_interface"], params["data_interface"])
        management, data = (mac_address(params["name"], host["name"], plane) for plane in planes)
        vms.append(
            Vm(
                name=host["name"],
                port=host["port"],
                data=tuple(_masked(host["name"], address, prefixes) for address in host["data"]),
                memory_mib=host["memory_mib"],
                cpus=host["cpus"],
                macs=(management, data),
            )
        )
    if not vms:
        raise LabError("hosts: got none, expected a server at least")
    return Fleet(
        params["name"],
        tuple(vms),
        params["management_interface"],
        params["data_interface"],
        tuple(params["boot_args"]),
    )


def _check(host: Mapping[str, Any], others: Iterable[Vm]) -> None:
    name = host["name"]
    if not HOST_NAME.fullmatch(name):
        raise LabError(f"host {name!r}: expected lower-case letters and digits")
    if not 1024 <= host["port"] <= 65535:
        raise LabError(f"host {name}: ansible_port: got {host['port']}, expected 1024 to 65535")
    if host["memory_mib"] < MEMORY_MIN_MIB:
        raise LabError(
            f"host {name}: lab_vm_memory_mib: got {host['memory_mib']}, expected at least "
            f"{MEMORY_MIN_MIB}"
        )
    if not 1 <= host["cpus"] <= 64:
        raise LabError(f"host {name}: lab_vm_cpus: got {host['cpus']}, expected 1 to 64")
    for other in others:
        if other.name == name:
            raise LabError(f"host {name}: got it twice, expected each host once")
        if twice := {address.split("/")[0] for address in other.data} & set(host["data"]):
            raise LabError(f"host {name}: {min(twice)} is {other.name}'s already")
        if other.port == host["port"]:
            raise LabError(f"host {name}: ansible_port {host['port']} is {other.name}'s already")


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as bad:
        raise LabError(f"lab_prefixes: got {text!r}, expected a network: {bad}") from None


def _masked(
    host: str,
    address: str,
    prefixes: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network],
) -> str:
    try:
        wanted = ipaddress.ip_address(address)
    except ValueError:
        raise LabError(f"host {host}: got {address!r}, expected an IP address") from None
    for network in prefixes:
        if wanted.version == network.version and wanted in network:
            return f"{wanted}/{network.prefixlen}"
    listed = ", ".join(map(str, prefixes))
    raise LabError(f"host {host}: {address} is in none of the lab's prefixes ({listed})")


def guest_files(fleet: Fleet, vm: Vm) -> dict[str, str]:
    """The files that make a guest this host and no other, by path."""
    hosts = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    for other in fleet.vms:
        hosts += [f"{address.split('/')[0]} {other.name}" for address in other.data]
    directory = "etc/systemd/network"
    return {
        "etc/hostname": f"{vm.name}\n",
        "etc/hosts": "\n".join(hosts) + "\n",
        f"{directory}/10-{fleet.data_interface}.network": network_file(
            fleet.data_interface, vm.data
        ),
        f"{directory}/10-{fleet.management_interface}.network": network_file(
            fleet.management_interface, (f"{GUEST_ADDRESS}/24",)
        ),
    }


def links(fleet: Fleet, vm: Vm) -> list[str]:
    """QEMU arguments of a machine's end of the data network; paths are relative to its directory.

    Two machines share one stream over a unix socket. More of them meet in a hub inside the first
    one's QEMU, one stream to each: a virtio NIC drops frames for other addresses before the guest
    sees them.
    """
    hub, *others = fleet.vms
    if vm is not hub:
        return ["-netdev", _stream("data", f"../{hub.name}/{vm.name}.sock", server=False)]
    if not others:
        return ["-netdev", "hubport,id=data,hubid=0"]
    if len(others) == 1:
        return ["-netdev", _stream("data", f"{others[0].name}.sock", server=True)]
    words = ["-netdev", "hubport,id=data,hubid=0"]
    for other in others:
        words += ["-netdev", _stream(f"to-{other.name}", f"{other.name}.sock", server=True)]
        words += ["-netdev", f"hubport,id=hub-{other.name},hubid=0,netdev=to-{other.name}"]
    return words


def _stream(name: str, path: str, *, server: bool) -> str:
    end = "on" if server else "off"
    return f"stream,id={name},server={end},addr.type=unix,addr.path={path}"


def accelerator(kind: str) -> list[str]:
    """QEMU arguments of an accelerator: kvm or tcg."""
    if kind == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", f"tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}", "-cpu", "max"]


def processors(cpus: int) -> str:
    """QEMU's -smp for that many processors, with room for a second one.

    For a machine that can never have two, TCG translates locked instructions without their memory
    barrier (its CF_PARALLEL flag follows maxcpus), and Linux's smp_mb() is one of them. QEMU's I/O
    thread runs beside the processor all the same: a virtio queue's notification gets lost now and
    then, and the link stalls for good ("NETDEV WATCHDOG: transmit queue timed out").
    """
    return f"{cpus},maxcpus={max(2, cpus)}"


def qemu_arguments(fleet: Fleet, vm: Vm, kind: str, image: str, directory: str) -> list[str]:
    """Arguments of qemu-system-x86_64(1), which runs with the machine's directory as its own.

    :param kind: the accelerator.
    :param image: directory with vmlinuz and initrd.img.
    :param directory: absolute path of the machine's directory: it tells the process apart.
    """
    boot = "root=LABEL=connlab rw console=ttyS0 quiet loglevel=4 fsck.mode=skip"
    # An emulated processor does not speculate: guarding it against that only costs time.
    emulated = ["mitigations=off"] if kind == "tcg" else []
    append = " ".join([boot, *emulated, f"systemd.hostname={vm.name}", *fleet.boot_args])
    forward = f"hostfwd=tcp:127.0.0.1:{vm.port}-{GUEST_ADDRESS}:22"
    return [
        *("-name", f"{fleet.name}-{vm.name}"),
        *("-machine", "q35"),
        *accelerator(kind),
        *("-smp", processors(vm.cpus)),
        *("-m", str(vm.memory_mib)),
        *("-nodefaults", "-no-user-config"),
        *("-display", "none"),
        *("-serial", "file:console.log"),
        *("-kernel", f"{image}/vmlinuz"),
        *("-initrd", f"{image}/initrd.img"),
        *("-append", append),
        *("-fw_cfg", "name=opt/connlab/files,file=files.tar"),
        # A disk that is thrown away is not synced; one that is full is the guest's to hear of.
        "-drive",
        f"file={_escape(directory)}/disk.qcow2,if=none,id=disk,format=qcow2,cache=unsafe,"
        "discard=unmap,werror=report,rerror=report",
        *("-device", "virtio-blk-pci,drive=disk,addr=2"),
        *("-netdev", f"user,id=mgmt,restrict=on,ipv6=off,{forward}"),
        *("-device", f"virtio-net-pci,netdev=mgmt,addr=3,mac={vm.macs[0]}"),
        *links(fleet, vm),
        *("-device", f"virtio-net-pci,netdev=data,addr=4,{TX},mac={vm.macs[1]}"),
        *("-device", "virtio-rng-pci"),
        *("-qmp", "unix:qmp.sock,server=on,wait=off"),
        *("-pidfile", "qemu.pid"),
        "-daemonize",
    ]


def _escape(path: str) -> str:
    """A path as QEMU's option parser reads it: a comma is doubled."""
    return path.replace(",", ",,")


def configuration(fleet: Fleet, vm: Vm, kind: str, image: str) -> str:
    """A hash of all that a running machine cannot take over while it runs."""
    about = [qemu_arguments(fleet, vm, kind, image, ""), guest_files(fleet, vm)]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Found:
    """What there is of one machine."""

    alive: bool = False
    image: str = ""
    configuration: str = ""
    port: int = 0
    """Port of 127.0.0.1 that it holds while it is alive; 0 if that is not known."""
    traces: bool = False


@dataclass
class Plan:
    """What must be done, by name, in this order."""

    remove: list[str] = field(default_factory=list)
    """Stop, and remove the disk: not wanted any more."""
    stop: list[str] = field(default_factory=list)
    wipe: list[str] = field(default_factory=list)
    """Remove the disk: it stands on another image."""
    start: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.remove or self.start)


def decide(fleet: Fleet, kind: str, image: str, found: Mapping[str, Found]) -> Plan:
    """What must be done to make the fleet as wanted.

    :param found: what there is, by name; machines that are not wanted too.
    """
    plan = Plan()
    wanted = {vm.name for vm in fleet.vms}
    for name, now in sorted(found.items()):
        if name not in wanted and (now.traces or now.alive):
            plan.remove.append(name)
            plan.reasons[name] = "not in the inventory's groups any more"
    hub_starts = False
    for vm in fleet.vms:
        now = found.get(vm.name, Found())
        # A disk of which nothing is known may be half made, or stand on another image.
        other_image = now.traces and now.image != image
        reason = (
            (now.traces and other_image and "the image changed")
            or (not now.alive and "it was not running")
            or (now.configuration != configuration(fleet, vm, kind, image) and "its configuration")
            # A stream that has lost its listener does not come back by itself (QEMU 7.2).
            or (hub_starts and "its data link ends in one that starts anew")
        )
        if not reason:
            continue
        hub_starts = hub_starts or vm is fleet.vms[0]
        plan.reasons[vm.name] = reason
        if now.alive:
            plan.stop.append(vm.name)
        if other_image:
            plan.wipe.append(vm.name)
        plan.start.append(vm.name)
    return plan


def check_memory(vms: Sequence[Vm], available_mib: int) -> None:
    """Refuse machines that do not fit.

    :param vms: those that are to be started.
    :param available_mib: MemAvailable once those that are stopped first are gone, MiB.
    :raises LabError: naming the sum.
    """
    needed = sum(vm.memory_mib + OVERHEAD_MIB for vm in vms) + SPARE_MIB
    if vms and needed > available_mib:
        parts = " + ".join(f"{vm.name} {vm.memory_mib}" for vm in vms)
        raise LabError(
            f"{parts} MiB, {OVERHEAD_MIB} MiB for each QEMU and {SPARE_MIB} MiB to spare are "
            f"{needed} MiB, and MemAvailable is {available_mib} MiB: lower connections or "
            "lab_vm_memory_mib, or free memory"
        )
