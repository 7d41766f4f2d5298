"""Plan the changes that turn the current state of a lab into the wanted state.

Pure functions: nothing here reads or changes the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ansible.module_utils.connlab_files import configuration
from ansible.module_utils.connlab_layout import Lab


@dataclass
class Found:
    """The current state of one host."""

    alive: bool = False
    """Its supervisor runs, with the pid and start time of its pid file."""
    processes: bool = False
    """Its cgroup has processes."""
    namespace: bool = False
    links: frozenset[str] = frozenset()
    ehash: int = 0
    image: str = ""
    configuration: str = ""
    traces: bool = False
    """It has a directory or a cgroup, which is removed if the host is not wanted."""


@dataclass
class Plan:
    """The changes to make, by host name, in this order."""

    remove: list[str] = field(default_factory=list)
    """Stop the host and remove everything of it: it is not wanted any more."""
    stop: list[str] = field(default_factory=list)
    """Stop the host: it has to be restarted."""
    wipe: list[str] = field(default_factory=list)
    """Remove its disk: it is based on another image."""
    network: list[str] = field(default_factory=list)
    """Recreate its namespace and links; hosts that are VMs have none."""
    start: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Return whether there is nothing to do."""
        return not (self.remove or self.stop or self.wipe or self.network or self.start)


def decide(lab: Lab, image: str, found: dict[str, Found], switch: bool) -> Plan:
    """Return the changes that bring the lab to its wanted state.

    :param image: path of the image that the hosts must be based on.
    :param found: the current state by host name, including hosts that are not wanted.
    :param switch: whether the switch namespace and its links are complete; without them the
        hosts' links are not connected.
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
