"""Connections that clients hold and no server has accepted: some of them lead elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal

PAUSE_SECONDS = 1.0
"""Between a look at the clients and the servers' figures that it is compared with: a tick that was
on its way while the clients were looked at is older than that look. How old a tick is says its own
clock, up to the least time that one has taken: it may have been held up for seconds."""


class Strays:
    """Compares what clients hold with what servers have accepted by then.

    An established connection that is not accepted yet waits in a listener's queue, or the client
    alone believes in it because the queue was full when its last segment came. So the clients are
    ahead by the queues and by what is under way at the most (listen(2); net/ipv4/tcp_ipv4.c
    ``tcp_v4_syn_recv_sock``). What servers have accepted counts even where it has been closed
    since.

    :param allowed: places in all queues, and connections under way, together
    :param planned: every server and the connections of the plan that end at it: it counts for no
        more, whatever it says
    :param counted: what counts of a server: ``opened`` while connections only come; ``held`` where
        they go as well
    """

    def __init__(
        self,
        allowed: int,
        planned: Mapping[Any, int],
        clock: Callable[[], float] = time.monotonic,
        *,
        counted: Literal["opened", "held"] = "opened",
    ) -> None:
        self._allowed, self._planned = allowed, planned
        self._counted, self._clock = counted, clock
        self._held: dict[Hashable, int] = {}
        self._accepted: dict[Hashable, tuple[float, int]] = {}
        """When it was counted, by our clock, and the count."""
        self._offset: dict[Hashable, float] = {}
        """Our clock less that of the server, and the least time that a tick has taken."""
        self._looked: tuple[float, int] | None = None

    def tick(self, agent: Hashable, role: str, message: Mapping[str, Any]) -> None:
        """Take in one tick."""
        if role == "client":
            self._held[agent] = message["held"]
            return
        offset = min(self._offset.get(agent, math.inf), self._clock() - message["t"])
        self._offset[agent] = offset
        self._accepted[agent] = (
            message["t"] + offset,
            min(message[self._counted], self._planned.get(agent, 0)),
        )

    def found(self) -> int:
        """How many more the clients hold than is possible; 0 as far as is known."""
        now = self._clock()
        if self._looked is None:
            self._looked = now, sum(self._held.values())
            return 0
        looked, held = self._looked
        times = [at for at, _ in self._accepted.values()]
        if len(times) < len(self._planned) or min(times) < looked + PAUSE_SECONDS:
            return 0
        self._looked = now, sum(self._held.values())
        ahead = held - sum(count for _, count in self._accepted.values())
        return ahead if ahead > self._allowed else 0
