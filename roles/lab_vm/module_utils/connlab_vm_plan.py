"""Plan the changes that turn the current virtual machines of a lab into the wanted ones.

Pure functions: nothing here reads or changes the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible.module_utils.connlab_layout import LabError
from ansible.module_utils.connlab_plan import Plan
from ansible.module_utils.connlab_vm_arguments import configuration
from ansible.module_utils.connlab_vm_layout import Fleet, Vm

OVERHEAD_MIB = 300
"""Memory of a QEMU process beyond the guest's, MiB: its translation cache (tb-size) and itself."""

SPARE_MIB = 512
"""Memory that is left for the rest of the machine, MiB."""


@dataclass
class Found:
    """The current state of one machine."""

    alive: bool = False
    image: str = ""
    configuration: str = ""
    port: int = 0
    """Port of 127.0.0.1 that it listens on while it runs; 0 if unknown."""
    traces: bool = False


def decide(fleet: Fleet, kind: str, image: str, found: Mapping[str, Found]) -> Plan:
    """Return the changes that bring the fleet to its wanted state.

    :param found: the current state by name, including machines that are not wanted.
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
        # A disk without notes may be incomplete, or based on another image.
        other_image = now.traces and now.image != image
        reason = (
            (now.traces and other_image and "the image changed")
            or (not now.alive and "it was not running")
            or (now.configuration != configuration(fleet, vm, kind, image) and "its configuration")
            # A stream that has lost its listener does not reconnect by itself (QEMU 7.2).
            or (hub_starts and "its data link ends in a machine that restarts")
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
    """Check that the machines fit the memory.

    :param vms: the machines to start.
    :param available_mib: MemAvailable after the machines that are stopped first are gone, MiB.
    :raises LabError: if they do not fit, with the sum.
    """
    needed = sum(vm.memory_mib + OVERHEAD_MIB for vm in vms) + SPARE_MIB
    if vms and needed > available_mib:
        parts = " + ".join(f"{vm.name} {vm.memory_mib}" for vm in vms)
        raise LabError(
            f"{parts} MiB, {OVERHEAD_MIB} MiB for each QEMU and {SPARE_MIB} MiB to spare are "
            f"{needed} MiB, and MemAvailable is {available_mib} MiB: lower connections or "
            "lab_vm_memory_mib, or free memory"
        )
