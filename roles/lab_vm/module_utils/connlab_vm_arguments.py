"""Files and QEMU arguments that give a guest its identity.

Pure functions: nothing here reads or changes the machine.
"""

from __future__ import annotations

import hashlib
import json

from ansible.module_utils.connlab_files import network_file
from ansible.module_utils.connlab_vm_layout import Fleet, Vm

GUEST_ADDRESS = "10.0.2.15"
"""The guest's own address on QEMU's user network, whose default is 10.0.2.0/24."""

TRANSLATION_CACHE_MIB = 256
"""Size of TCG's cache of translated code, MiB; QEMU's default is up to 1 GiB."""

TX = "tx=timer"
"""QEMU collects frames for 150 µs instead of waking its I/O thread for each: 5.6k connections a
second between two emulated machines instead of 4.2k."""


def guest_files(fleet: Fleet, vm: Vm) -> dict[str, str]:
    """Return the files that give a guest its identity, by path."""
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
    """Return the QEMU arguments for a machine's end of the data network.

    Paths are relative to the machine's directory. Two machines share one stream over a unix socket.
    With more machines, the first one's QEMU has a hub with one stream to each of the others. Its
    virtio NIC drops frames for other addresses before the guest sees them.
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


def served(fleet: Fleet, vm: Vm) -> list[str]:
    """Return the names of the sockets on which a machine's QEMU listens for other machines."""
    hub, *others = fleet.vms
    return [f"{other.name}.sock" for other in others] if vm is hub else []


def _stream(name: str, path: str, *, server: bool) -> str:
    end = "on" if server else "off"
    return f"stream,id={name},server={end},addr.type=unix,addr.path={path}"


def accelerator(kind: str) -> list[str]:
    """Return the QEMU arguments for an accelerator: kvm or tcg."""
    if kind == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", f"tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}", "-cpu", "max"]


def processors(cpus: int) -> str:
    """Return QEMU's -smp for `cpus` processors, with room for a second one.

    For a machine that can never have two processors, TCG translates locked instructions without
    their memory barrier (its CF_PARALLEL flag follows maxcpus), and Linux's smp_mb() is one of
    them. But QEMU's I/O thread still runs beside the processor, so a notification of a virtio queue
    is occasionally lost, and the link stalls for good ("NETDEV WATCHDOG: transmit queue timed
    out").
    """
    return f"{cpus},maxcpus={max(2, cpus)}"


def qemu_arguments(fleet: Fleet, vm: Vm, kind: str, image: str, directory: str) -> list[str]:
    """Return the arguments of qemu-system-x86_64(1), which runs in the machine's directory.

    :param kind: the accelerator.
    :param image: directory with vmlinuz and initrd.img.
    :param directory: absolute path of the machine's directory, which identifies the process.
    """
    boot = "root=LABEL=connlab rw console=ttyS0 quiet loglevel=4 fsck.mode=skip"
    # An emulated processor does not speculate, so the mitigations would only cost time.
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
        # A disposable disk is not synced. Errors such as a full disk are reported to the guest.
        "-drive",
        f"{disk(directory)},if=none,id=disk,format=qcow2,cache=unsafe,"
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


def disk(directory: str) -> str:
    """Return the option that names a machine's disk; QEMU's options need commas doubled."""
    return f"file={directory.replace(',', ',,')}/disk.qcow2"


def configuration(fleet: Fleet, vm: Vm, kind: str, image: str) -> str:
    """Return a hash of everything that a machine takes over only when it starts."""
    about = [qemu_arguments(fleet, vm, kind, image, ""), guest_files(fleet, vm)]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
