"""How long sockets stay that no program holds any more: TIME_WAIT and FIN_WAIT_2."""

from __future__ import annotations

import errno
import re
import socket
import time
from typing import Any, Dict, List, Optional, Tuple

from bench import wire
from bench.agent import control, probe
from bench.agent.stage import Misuse, Stage
from bench.agent.trials import door

EVERY = 0.2
"""Seconds between two looks."""

LONGEST = 200.0
"""The most seconds to watch."""

APPEARS = 2.0
"""Seconds within which a socket must be in its state."""

SOURCES = range(20_000, 21_000)
"""Source ports, below the range that the kernel chooses from. While a port that bind(2) took is in
TIME_WAIT, connect(2) does not choose it (net/ipv4/inet_hashtables.c ``__inet_hash_connect``). So a
port of that range would be missing for other processes on this host."""

PATIENCE = 5.0
TIMER = re.compile(r"timer:\([a-z-]+,(?:(\d+)min)?(?:([\d.]+)sec)?(?:(\d+)ms)?,")
STATES = ("TIME-WAIT", "FIN-WAIT-2")


class Watched:
    """One closed connection, and the state that it should be in."""

    def __init__(self, port: int, state: str) -> None:
        self.port = port
        self.state = state
        self.began = time.monotonic()
        self.seconds: Optional[float] = None
        """How long it was in that state; None while it still is."""
        self.armed: Optional[float] = None
        """How long it would be there by its timer; None if no timer was seen."""


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Have all ``targets`` [[address, port]] proven, then carry out steps until the input ends.

    A step with ``target`` and ``state`` opens a connection, closes it by FIN, and is answered when
    the socket is in that state. A step with ``watch`` waits until all sockets have left their
    states, for at most that many seconds. Its answer has ``seconds``: how long each socket was
    there, in the order of opening, null if it still is. ``armed`` has the time for which each timer
    had been set.
    """
    targets = door.endpoints(args["targets"])
    door.proven(args, targets)
    stage.tell()
    watched: List[Watched] = []
    while True:
        step = stage.step() or {}
        if "watch" in step:
            _watch(watched, step["watch"], targets)
            stage.tell(
                seconds=[one.seconds for one in watched], armed=[one.armed for one in watched]
            )
        else:
            target = door.endpoint(step["target"])
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
    with _bound(source) as made:
        made.connect(target)
        made.send(b"x")
        port = made.getsockname()[1]
    closed = Watched(port, state)
    while (port, state) not in _there(targets):
        if time.monotonic() - closed.began > APPEARS:
            raise OSError(0, f"port {port} was not in {state} within {APPEARS:g} s")
        time.sleep(EVERY / 10)
    return closed


def _bound(source: str) -> socket.socket:
    """Return a socket bound to the first free port of :data:`SOURCES`.

    :raises OSError: if none is free, or the address is not this host's.
    """
    made = socket.socket(control.family_of(source), socket.SOCK_STREAM)
    try:
        made.settimeout(PATIENCE)
        for port in SOURCES:
            try:
                made.bind((source, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return made
        span = f"from {SOURCES.start} to {SOURCES.stop - 1}"
        raise OSError(errno.EADDRINUSE, f"no port of {source} {span} is free")
    except BaseException:
        made.close()
        raise


def _watch(watched: List[Watched], seconds: Any, targets: List[wire.Endpoint]) -> None:
    if not isinstance(seconds, (int, float)) or not 0 < seconds <= LONGEST:
        raise Misuse(f"watch: got {seconds!r}, expected above 0 and at most {LONGEST:g}")
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and any(one.seconds is None for one in watched):
        there = _there(targets)
        now = time.monotonic()
        for one in watched:
            left = there.get((one.port, one.state), 0.0)
            if one.seconds is None and (one.port, one.state) not in there:
                one.seconds = now - one.began
            elif left:  # a timer that has run out, and is late, shows nothing
                one.armed = now - one.began + left
        time.sleep(EVERY)


def _there(targets: List[wire.Endpoint]) -> Dict[Tuple[int, str], Optional[float]]:
    """Return the sockets to these targets, by ss(8).

    :return: (own port, state) to the seconds left on the socket's timer
    """
    terms = " or ".join(f"dport = :{port}" for _, port in targets)
    found = {}
    for line in probe.output([probe.tool("ss"), "-Htano", f"( {terms} )"]).splitlines():
        words = line.split()
        found[int(words[3].rpartition(":")[2]), words[0]] = left(line)
    return found


def left(line: str) -> Optional[float]:
    """Return the seconds on a timer in a line of ``ss -o`` (ss.c ``print_ms_timer``); None if none.

    Below ten seconds ss shows thousandths.
    """
    match = TIMER.search(line)
    if not match or not any(match.groups()):
        return None
    minutes, seconds, thousandths = match.groups()
    return 60.0 * int(minutes or 0) + float(seconds or 0) + int(thousandths or 0) / 1000
