"""How long sockets stay that no program holds any more: TIME_WAIT and FIN_WAIT_2."""

from __future__ import annotations

import socket
import time
from typing import Any, Dict, List, Optional, Set, Tuple

from bench import wire
from bench.agent import control, probe
from bench.agent.stage import Misuse, Stage
from bench.agent.trials import door

EVERY = 0.2
"""Seconds between two looks."""

LONGEST = 200.0
"""Seconds that may be watched."""

APPEARS = 2.0
"""Seconds in which a state has come that is to come at all."""

PATIENCE = 5.0
STATES = ("TIME-WAIT", "FIN-WAIT-2")


class Watched:
    """One closed connection and the state that it is to be in."""

    def __init__(self, port: int, state: str) -> None:
        self.port = port
        self.state = state
        self.began = time.monotonic()
        self.seconds: Optional[float] = None
        """How long it was in that state; none while it is."""


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Have all ``targets`` [[address, port]] proven, then take steps until the end of the input.

    A step with ``target`` and ``state`` opens a connection, closes it by FIN, and is answered when
    it is in that state. One with ``watch`` waits until all have left theirs, at most so many
    seconds; ``seconds`` has how long each was there, in the order in which they were opened, none
    for one that still is.
    """
    targets = [(str(address), int(port)) for address, port in args["targets"]]
    door.proven(args, targets)
    stage.tell()
    watched: List[Watched] = []
    while True:
        step = stage.step() or {}
        if "watch" in step:
            _watch(watched, step["watch"], targets)
            stage.tell(seconds=[one.seconds for one in watched])
        else:
            target = str(step["target"][0]), int(step["target"][1])
            if target not in targets or step.get("state") not in STATES:
                raise Misuse(
                    f"target, state: got {target}, {step.get('state')!r}, expected a target that "
                    f"was proven and one of {', '.join(STATES)}"
                )
            watched.append(_closed(args["source"], target, step["state"], targets))
            stage.tell()


def _closed(
    source: str, target: wire.Endpoint, state: str, targets: List[wire.Endpoint]
) -> Watched:
    with socket.socket(control.family_of(source), socket.SOCK_STREAM) as made:
        made.settimeout(PATIENCE)
        made.bind((source, 0))
        made.connect(target)
        made.send(b"x")
        port = made.getsockname()[1]
    closed = Watched(port, state)
    while (port, state) not in _there(targets):
        if time.monotonic() - closed.began > APPEARS:
            raise OSError(0, f"port {port} was not in {state} within {APPEARS:g} s")
        time.sleep(EVERY / 10)
    return closed


def _watch(watched: List[Watched], seconds: Any, targets: List[wire.Endpoint]) -> None:
    if not isinstance(seconds, (int, float)) or not 0 < seconds <= LONGEST:
        raise Misuse(f"watch: got {seconds!r}, expected above 0 and at most {LONGEST:g}")
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and any(one.seconds is None for one in watched):
        there = _there(targets)
        now = time.monotonic()
        for one in watched:
            if one.seconds is None and (one.port, one.state) not in there:
                one.seconds = now - one.began
        time.sleep(EVERY)


def _there(targets: List[wire.Endpoint]) -> Set[Tuple[int, str]]:
    """Own port and state of the sockets to these targets, by ss(8)."""
    terms = " or ".join(f"dport = :{port}" for _, port in targets)
    found = set()
    for line in probe.output([probe.tool("ss"), "-Htan", f"( {terms} )"]).splitlines():
        words = line.split()
        found.add((int(words[3].rpartition(":")[2]), words[0]))
    return found
