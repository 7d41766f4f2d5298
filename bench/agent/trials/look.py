"""Looks at a host between the steps of an experiment: output of its tools, counts of sockets."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional

from bench.agent import probe
from bench.agent.stage import Misuse, Stage
from bench.agent.trials import door

STATES = ("established", "syn-recv", "fin-wait-2", "time-wait")
"""States that sockets can be counted in, as named by ss(8)."""


def run(stage: Stage, _: Dict[str, Any]) -> Dict[str, Any]:
    """Answer each step, until the end of the input.

    A step has ``texts``, names of :data:`bench.wire.SOURCES`, and ``count``, entries with ``ends``
    [[address, port]], ``side`` src or dst, and ``state``. The answer has the texts by name, and the
    counts in that order. With ``listening`` true it also has ``ports``, the ports that sockets
    listen on. With ``named`` it has ``pss_kib``: the proportional set size of all processes of that
    name (proc(5), smaps_rollup; only root can read another user's).

    :raises probe.Unreadable: if something cannot be read.
    """
    step: Optional[Dict[str, Any]] = {}
    while True:
        step = step or {}
        told: Dict[str, Any] = {
            "texts": _texts(step.get("texts") or []),
            "counts": _counts(step.get("count") or []),
        }
        if step.get("listening"):
            told["ports"] = listening(probe.output([probe.tool("ss"), "-Htln"]))
        if step.get("named"):
            told["pss_kib"] = probe.pss_kib(named(str(step["named"])))
        stage.tell(**told)
        step = stage.step()


def _texts(names: List[Any]) -> Dict[str, str]:
    for name in names:
        if name not in probe.SOURCES:
            raise Misuse(f"texts: got {name!r}, expected one of {', '.join(probe.SOURCES)}")
    return {name: probe.SOURCES[name]() for name in names}


def _counts(wanted: List[Any]) -> List[int]:
    for one in wanted:
        if one.get("state") not in STATES:
            raise Misuse(f"state: got {one.get('state')!r}, expected one of {', '.join(STATES)}")
        if one.get("side") not in ("src", "dst"):
            raise Misuse(f"side: got {one.get('side')!r}, expected src or dst")
    return [probe.sockets(door.endpoints(one["ends"]), one["side"], one["state"]) for one in wanted]


def listening(text: str) -> List[int]:
    """Return the ports in the lines of ``ss -Htln``: connect(2) chooses none of them.

    ``__inet_hash_connect`` skips a port that a socket was explicitly bound to
    (net/ipv4/inet_hashtables.c).
    """
    return sorted({int(line.split()[3].rpartition(":")[2]) for line in text.splitlines()})


def named(name: str) -> List[int]:
    """Return the processes of that name (``/proc/PID/comm``)."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if probe.text(f"/proc/{entry}/comm").strip() == name:
                    found.append(int(entry))
            except probe.Unreadable:  # it ended meanwhile
                continue
    return found
