"""Looks at a host between the steps of an experiment: what its tools print, sockets counted."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from bench.agent import probe
from bench.agent.stage import Misuse, Stage

STATES = ("established", "syn-recv", "fin-wait-2", "time-wait")
"""States that sockets can be counted in, as ss(8) names them."""


def run(stage: Stage, _: Dict[str, Any]) -> Dict[str, Any]:
    """Answer each step, until the end of the input.

    A step has ``texts``, names of :data:`bench.agent.probe.SOURCES`, and ``count``, entries with
    ``ends`` [[address, port]], ``side`` src or dst, and ``state``; the answer has the texts by name
    and the counts in that order.

    :raises probe.Unreadable: what cannot be read.
    """
    step: Optional[Dict[str, Any]] = {}
    while True:
        step = step or {}
        stage.tell(texts=_texts(step.get("texts") or []), counts=_counts(step.get("count") or []))
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
    return [
        probe.sockets([(a, int(p)) for a, p in one["ends"]], one["side"], one["state"])
        for one in wanted
    ]
