"""Messages of many agents for the one thread that reads them, with a bound for each agent.

If an agent sends more than is read, its reader thread stops, and SSH's window fills. So a flood
costs bounded memory here, and makes the agent wait.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

Sender = TypeVar("Sender")
Item = TypeVar("Item")

MOST_BYTES = 64 << 20
"""The most bytes of one sender that may wait: several times the largest message."""


class Inbox(Generic[Sender, Item]):
    """A queue with a bound for each sender."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self._items: deque[tuple[Sender, Item, int]] = deque()
        self._waiting: dict[Sender, int] = {}
        self._change = threading.Condition()
        self._closed = False

    def put(self, sender: Sender, item: Item, size: int) -> None:
        """Add an item of ``size`` bytes; wait while the sender's bound is exceeded."""
        with self._change:
            while self._waiting.get(sender, 0) > self._most and not self._closed:
                self._change.wait()
            if self._closed:
                return
            self._waiting[sender] = self._waiting.get(sender, 0) + size
            self._items.append((sender, item, size))
            self._change.notify_all()

    def get(self, seconds: float) -> tuple[Sender, Item] | None:
        """Return the oldest item and its sender; None if none arrives in time."""
        until = time.monotonic() + seconds
        with self._change:
            while not self._items:
                left = until - time.monotonic()
                if left <= 0 or not self._change.wait(left):
                    return None
            sender, item, size = self._items.popleft()
            self._waiting[sender] -= size
            self._change.notify_all()
            return sender, item

    def close(self) -> None:
        """Accept nothing more; senders that wait go on."""
        with self._change:
            self._closed = True
            self._items.clear()
            self._change.notify_all()
