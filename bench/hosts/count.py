"""The connections of hosts, counted by their kernels; nothing is opened."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bench import wire
from bench.agent import bundle
from bench.errors import InputError
from bench.hosts.session import Connect, Session
from bench.inventory import Host, Inventory
from bench.units import printable, whole

SECONDS = 60.0
"""Seconds for one host's answer: a million sockets take about one, and more with their addresses as
text."""

GROUPS = ("servers", "clients", "routers", "proxies")
PORTS = 1, 65_535
"""First and last TCP port (RFC 9293); 0 is not a port."""

Ranges = list[tuple[int, int]]


class Count(NamedTuple):
    """The count of one host."""

    host: str
    total: int
    counts: dict[str, int]
    """By port, state or remote address, the largest first; empty if not counted by any of them."""
    seconds: float
    """Time for counting on the host."""

    def as_json(self) -> dict[str, Any]:
        """Return the count as data, without the host's name."""
        return {"total": self.total, "seconds": self.seconds, "counts": self.counts}


def ranges(text: str) -> Ranges:
    """Return port ranges as typed, sorted and merged: ``5000``, ``5000-5010``, ``22,80,8000-8099``.

    :raises InputError: if a part is not a port or a range, or there are too many
    """
    found = sorted(_range(part.strip()) for part in text.split(","))
    merged: Ranges = []
    for low, high in found:
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], high)
        else:
            merged.append((low, high))
    if len(merged) > wire.COUNT_RANGES:
        raise InputError(
            f"--ports: got {len(merged)} ranges apart from each other, "
            f"expected at most {wire.COUNT_RANGES}"
        )
    return merged


def _range(part: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,9})(?: *- *([0-9]{1,9}))?", part)
    if match:
        low, high = int(match[1]), int(match[2] or match[1])
        if PORTS[0] <= low <= high <= PORTS[1]:
            return low, high
    raise InputError(
        f"--ports: got {part!r}, expected a port or a range such as 5000-5010, "
        f"from {PORTS[0]} to {PORTS[1]}"
    )


def states(names: Iterable[str]) -> list[str]:
    """Return the states to count: those named, or all states of a connection if none is named.

    :raises InputError: for a name that ss(8) does not have
    """
    wanted = _words(names)
    for name in wanted:
        if name not in wire.TCP_STATES:
            raise InputError(f"--state: got {name!r}, expected {', '.join(wire.TCP_STATES)}")
    return wanted or list(wire.TCP_STATES)


def hosts(inventory: Inventory, names: Iterable[str]) -> list[Host]:
    """Return the hosts named, by name or group; the servers if none is named.

    :raises InputError: for a name that the inventory does not have
    """
    found: dict[str, Host] = {}
    for name in _words(names) or ["servers"]:
        members = inventory.of(name) if name in GROUPS else []
        if name in inventory.hosts:
            members = [inventory.hosts[name]]
        if not members:
            raise InputError(f"--hosts: got {name!r}, expected {_near(name, inventory)}")
        found |= {host.name: host for host in members}
    return list(found.values())


def _words(texts: Iterable[str]) -> list[str]:
    """Return the words of lists with commas, each once."""
    return list(dict.fromkeys(word.strip() for text in texts for word in text.split(",")))


def _near(name: str, inventory: Inventory) -> str:
    """Return the hosts and groups with the most similar names, or the first ones of all."""
    there = [*(group for group in GROUPS if inventory.of(group)), *inventory.hosts]
    near = difflib.get_close_matches(name, there, 3)
    return " or ".join(near) or ", ".join([*there[:10], *(["…"] if len(there) > 10 else [])])


def look(asked: Sequence[Host], connect: Connect, spec: wire.CountSpec) -> list[Count]:
    """Return the connections of the hosts, in the given states and on the given ports.

    All hosts count at the same time.

    :raises LabError: if a host cannot be reached or its kernel does not answer.
    :raises InputError: if a host has no Python that can run the agent.
    """
    with Session(connect, bundle.build().data) as session:
        session.start((host, "client" if "clients" in host.groups else "server") for host in asked)
        told = session.ask(session.agents, "count", "counted", SECONDS, **spec)
        found = [_count(agent.name, told[agent]) for agent in session.agents]
        session.close(drained=True)
    return found


def _count(host: str, message: Mapping[str, Any]) -> Count:
    most_first = sorted(message["counts"].items(), key=lambda entry: (-entry[1], _rank(entry[0])))
    counts = {printable(str(key)): number for key, number in most_first}
    return Count(host, message["total"], counts, message["seconds"])


def _rank(key: str) -> tuple[int, str]:
    """Return a sort key: ports by number, the rest by name."""
    port = whole(key)
    return (0, key) if port is None else (port, "")
