"""What must be done to make a lab as wanted, given what there is.

Pure functions: nothing here reads or changes the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ansible.module_utils.connlab_files import configuration
from ansible.module_utils.connlab_layout import Lab


@dataclass
class Found:
    """What there is of one host."""

    alive: bool = False
    """Its supervisor runs: pid and start time are those of its pid file."""
    processes: bool = False
    """Processes are left in its cgroup."""
    namespace: bool = False
    links: frozenset[str] = frozenset()
    ehash: int = 0
    image: str = ""
    configuration: str = ""
    traces: bool = False
    """Something of it is left that must go if it is not wanted: a directory or a cgroup."""


@dataclass
class Plan:
    """What must be done, by host name, in this order."""

    remove: list[str] = field(default_factory=list)
    """Stop, and remove all that is of it: not wanted any more."""
    stop: list[str] = field(default_factory=list)
    """Stop: it has to be started anew."""
    wipe: list[str] = field(default_factory=list)
    """Remove its disk: it stands on another image."""
    network: list[str] = field(default_factory=list)
    """Make the namespace anew, with its links; hosts that are VMs have none."""
    start: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.remove or self.stop or self.wipe or self.network or self.start)


def decide(lab: Lab, image: str, found: dict[str, Found], switch: bool) -> Plan:
    """What must be done to make the lab as wanted.

    :param image: path of the image that the hosts must stand on.
    :param found: what there is, by host name; hosts that are not wanted too.
    :param switch: whether the switch namespace and its links are as they must be; without them
        the hosts' links go nowhere.
    """
    plan = Plan()
    wanted = {host.name: host for host in lab.hosts}
    for name, now in sorted(found.items()):
        if name not in wanted and (now.traces or now.namespace or now.processes):
            plan.remove.append(name)
            plan.reasons[name] = "not in the inventory's groups any more"
    links = {lab.data_interface, lab.management_interface}
    for name, host in wanted.items():
        now = found.get(name, Found())
        other_image = bool(now.image) and now.image != image
        table = lab.ehash > 0 and now.namespace and now.ehash < lab.ehash
        network = not switch or not now.namespace or table or not links <= now.links
        reason = (
            (now.traces and other_image and "the image changed")
            or (table and now.alive and f"its table of {now.ehash} buckets is too small")
            or (now.alive and network and "its links or its namespace were missing")
            or (now.alive and now.configuration != configuration(lab, host) and "its addresses")
            or (now.processes and not now.alive and "its supervisor was gone")
            or (not now.alive and "it was not running")
        )
        if not reason:
            continue
        plan.reasons[name] = reason
        if now.processes or now.alive:
            plan.stop.append(name)
        if other_image:
            plan.wipe.append(name)
        if network:
            plan.network.append(name)
        plan.start.append(name)
    return plan
