"""Stray connections: clients hold them, but no server has accepted them, so they lead elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal

PAUSE_SECONDS = 1.0
"""Time between a look at the clients and the servers' counts to compare it with: a tick that was on
its way during the look is older than the look. A tick's age comes from the server's own clock, up
to the least time that a tick has taken, because a tick may be delayed for seconds."""


class Strays:
    """A comparison of the connections that clients hold with those that servers have accepted.

    An established connection that is not accepted yet waits in a listener's queue, or only the
    client has it because the queue was full when its last segment came. So the clients are ahead by
    at most the queues and the connections under way (listen(2); net/ipv4/tcp_ipv4.c
    ``tcp_v4_syn_recv_sock``). An accepted connection counts even if it has been closed since.

    :param allowed: places in all queues plus connections under way
    :param planned: every server and the planned connections that end at it; a server counts for no
        more than these, whatever it reports
    :param counted: the server's count to use: ``opened`` while connections are only opened,
        ``held`` if they are closed as well
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
        """Time of the count, by the controller's clock, and the count."""
        self._offset: dict[Hashable, float] = {}
        """Controller's clock less the server's clock, plus the least time that a tick has taken."""
        self._looked: tuple[float, int] | None = None

    def tick(self, agent: Hashable, role: str, message: Mapping[str, Any]) -> None:
        """Record one tick."""
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
        """Return how many connections the clients hold beyond what is possible; 0 if none."""
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
