"""A server that naps for each connection that it accepts."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any, Dict, List, Optional

from bench import wire
from bench.agent import probe, sockets, workers
from bench.agent.server import listener
from bench.agent.stage import Misuse, Stage
from bench.agent.trials import door

MOST = 65_535
"""The longest queue that a step may ask for."""

LONGEST_MS = 1_000


class Slow:
    """One listening socket at a time, and the connections that it has accepted."""

    def __init__(self, nap: float) -> None:
        self.nap = nap
        self._listener: Optional[socket.socket] = None
        self._held: List[socket.socket] = []

    def listen(self, own: wire.Endpoint, backlog: int) -> None:
        """Close everything and listen anew."""
        self.close()
        self._listener = listener(own, backlog, reuse=False)
        self._listener.setblocking(False)

    def one(self) -> None:
        """Accept one connection, if one waits, and greet it with a byte."""
        if self._listener is None:
            return
        with contextlib.suppress(BlockingIOError, ConnectionError):
            made, _ = self._listener.accept()
            self._held.append(made)
            made.setblocking(False)
            made.send(b"x")

    @property
    def accepted(self) -> int:
        """Connections accepted since :meth:`listen`."""
        return len(self._held)

    def close(self) -> None:
        """Close everything. The kernel resets the queued connections (inet_csk_listen_stop())."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for one in self._held:
            sockets.reset(one)
        self._held.clear()


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Vouch for ``endpoint`` and listen there, step by step, until the end of the input.

    ``nap_ms`` is the time for each connection. A step with ``backlog`` closes everything and
    listens anew, with that backlog for listen(2). The answer has ``granted``, the length that
    net.core.somaxconn allows. A step without ``backlog`` is answered with the number of
    ``accepted`` connections.
    """
    nap = args.get("nap_ms")
    if not isinstance(nap, (int, float)) or not 0 < nap <= LONGEST_MS:
        raise Misuse(f"nap_ms: got {nap!r}, expected above 0 and at most {LONGEST_MS}")
    own = door.endpoint(args["endpoint"])
    workers.open_files("hard")
    slow = Slow(nap / 1000)
    try:
        with door.kept(args, [own]):
            stage.tell()
            while True:
                began = time.monotonic()
                slow.one()
                # The wait for a step is the nap.
                step = stage.step(max(0.0, slow.nap - (time.monotonic() - began)))
                if step is None:
                    continue
                if "backlog" in step:
                    stage.tell(granted=_listen(slow, own, step["backlog"]))
                else:
                    stage.tell(accepted=slow.accepted)
    finally:
        slow.close()


def _listen(slow: Slow, own: wire.Endpoint, backlog: Any) -> int:
    if not isinstance(backlog, int) or not 1 <= backlog <= MOST:
        raise Misuse(f"backlog: got {backlog!r}, expected 1 to {MOST}")
    slow.listen(own, backlog)
    # listen(2) limits it silently (net/socket.c __sys_listen()).
    return min(backlog, int(probe.text("/proc/sys/net/core/somaxconn")))
