"""Settings for a run on a fleet, and notes for the owner of its hosts."""

from __future__ import annotations

import math
from typing import Any

from bench.model.fit import NOFILE_MARGIN
from bench.scenario import Scenario
from bench.sizing.fleet import End, Fleet
from bench.units import count

NR_OPEN = 1_048_576
"""Default of fs.nr_open: the kernel's default (fs/file.c), and the least value that the role
tune_sysctl computes."""

NEIGHBOURS = 512
"""Neighbours that a kernel keeps permanently: gc_thresh2 (arp(7)). On one network segment every
address is a neighbour, and so is every alias address. Above gc_thresh3 (1,024) their packets are
dropped."""


USUAL = Scenario(name="usual", title="the defaults of every scenario")


def most(field: str) -> int:
    """Return the largest value that a scenario's field takes."""
    bounds = (getattr(one, "le", None) for one in Scenario.model_fields[field].metadata)
    return int(next(bound for bound in bounds if bound is not None))


def settings(fleet: Fleet) -> dict[str, Any]:
    """Return the scenario's fields that have to differ from their defaults."""
    found: dict[str, Any] = {}
    if fleet.servers.ports > 1:
        first = USUAL.server_ports[0]
        found["server_ports"] = list(range(first, first + fleet.servers.ports))
    if fleet.watch != USUAL.watch:
        found["watch"] = fleet.watch
    floor = math.ceil(fleet.servers.ram.floor / 2**20)
    if floor != USUAL.memory_floor_mib:
        found["memory_floor_mib"] = floor
    for field, end in (("active_workers", fleet.clients), ("acceptors", fleet.servers)):
        at_once = min(end.cores, most(field))
        if at_once > 1:
            found[field] = at_once
    patience = min(most("ramp_timeout_seconds"), math.ceil(2 * fleet.ramp.seconds))
    if patience > USUAL.ramp_timeout_seconds:
        found["ramp_timeout_seconds"] = patience
    return found


def sysctl(fleet: Fleet) -> dict[str, int]:
    """Return the kernel parameters that the hosts need and that the tuning roles do not compute."""
    found: dict[str, int] = {}
    if fleet.nofile > NR_OPEN:
        share = max(fleet.servers.largest, fleet.clients.largest)
        found["fs.nr_open"] = _power_of_two(max(fleet.nofile, share + NOFILE_MARGIN))
    neighbours = sum(end.hosts * end.addresses for end in (fleet.servers, fleet.clients))
    if neighbours > NEIGHBOURS:
        for number in (1, 2, 3):
            key = f"net.ipv4.neigh.default.gc_thresh{number}"
            found[key] = _power_of_two(neighbours) << (number - 1)
    return found


def notes(fleet: Fleet) -> list[str]:
    """Return notes on what else to do or to expect."""
    found = [
        f"boot {name} with thash_entries={end.ehash_entries} on the kernel command line: "
        f"without it the kernel makes {count(end.ehash_default)} entries, with about "
        f"{math.ceil(end.largest / end.ehash_default)} connections in each"
        for name, end in (("servers", fleet.servers), ("clients", fleet.clients))
        if _crowded(end)
    ]
    if fleet.connections > most("connections"):
        found.append(
            f"a run takes at most {count(most('connections'))} connections: use several runs side "
            "by side, each with its own hosts and inventory"
        )
    if fleet.ramp.seconds > most("ramp_timeout_seconds"):
        found.append(
            f"a run's ramp ends after {count(most('ramp_timeout_seconds'))} s at the latest: "
            "more cores or more hosts open the connections faster"
        )
    return found


def _power_of_two(number: int) -> int:
    """Return the least power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


def _crowded(end: End) -> bool:
    """Return whether the kernel's default established-hash table has fewer entries than
    connections."""
    return end.largest > end.ehash_default
