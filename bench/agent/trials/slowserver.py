"""A server that takes its time over each connection that it accepts."""

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
"""The longest queue that may be asked for."""

LONGEST_MS = 1_000


class Slow:
    """One listening socket at a time, and what it has accepted."""

    def __init__(self, nap: float) -> None:
        self.nap = nap
        self._listener: Optional[socket.socket] = None
        self._held: List[socket.socket] = []

    def listen(self, own: wire.Endpoint, backlog: int) -> None:
        """Drop what there is and listen anew."""
        self.close()
        self._listener = listener(own, backlog, reuse=False)
        self._listener.setblocking(False)

    def one(self) -> None:
        """Accept one connection, where one waits, and greet it with a byte."""
        if self._listener is None:
            return
        with contextlib.suppress(BlockingIOError, ConnectionError):
            made, _ = self._listener.accept()
            self._held.append(made)
            made.setblocking(False)
            made.send(b"x")

    @property
    def accepted(self) -> int:
        """Connections accepted since it began to listen."""
        return len(self._held)

    def close(self) -> None:
        """Close everything. The kernel resets what the queue still has (inet_csk_listen_stop())."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for one in self._held:
            sockets.reset(one)
        self._held.clear()


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Vouch for ``endpoint`` and listen there as the steps say, until the end of the input.

    ``nap_ms`` is what each connection takes. A step has ``backlog``: everything is closed, and it
    listens anew with a queue of that length, for listen(2); the answer has ``granted``, what
    net.core.somaxconn makes of it. A step without one is answered with the number ``accepted``.
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
    # listen(2) cuts it silently (net/socket.c __sys_listen()).
    return min(backlog, int(probe.text("/proc/sys/net/core/somaxconn")))
