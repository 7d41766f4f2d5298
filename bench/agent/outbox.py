"""The agent's events on their way to the controller: written without ever blocking.

A controller that is suspended or cut off reads nothing, and soon a pipe and an SSH window are full.
If the agent then blocked in write(2), it would not read ``halt``, not notice the end of its input,
and not watch its memory.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from typing import Any, Deque, Union

from bench import wire

DROPPABLE = ("tick", "alive")
"""Events that may be dropped, because the next event of their kind replaces them."""

DROP_ABOVE = 1 << 16
"""Waiting bytes above which those are dropped: as much as a pipe holds (pipe(7))."""

MOST_BYTES = 1 << 26
"""The most bytes that may wait. The controller asks for one answer at a time, so more means that it
has stopped reading."""


class Gone(OSError):
    """The controller does not read: it has closed the pipe, or left too much unread."""


class Outbox:
    """Events on their way out through a descriptor, which is set to non-blocking."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._waiting: Deque[Union[bytes, memoryview]] = deque()
        self._bytes = 0
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Return whether something waits."""
        return bool(self._waiting)

    def put(self, event: Any) -> None:
        """Write an event, or keep it until there is room.

        :raises Gone: if the controller no longer reads.
        """
        with self._lock:
            if event["event"] in DROPPABLE and self._bytes > DROP_ABOVE:
                return
            if self._bytes > MOST_BYTES:
                raise self._unread()
            data = wire.encode(event)
            self._waiting.append(data)
            self._bytes += len(data)
            self._write()
            if self._bytes > MOST_BYTES:
                raise self._unread()

    def _unread(self) -> Gone:
        return Gone(0, f"{self._bytes} bytes unread by the controller")

    def flush(self) -> None:
        """Write as much as possible now. :raises Gone: if the controller no longer reads."""
        with self._lock:
            self._write()

    def finish(self, seconds: float) -> None:
        """Write what waits, for at most ``seconds``. Never raises."""
        until = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        with contextlib.suppress(OSError):
            while self and (left := until - time.monotonic()) > 0:
                poll.poll(left * 1000)
                self.flush()

    def _write(self) -> None:
        while self._waiting:
            data = self._waiting[0]
            try:
                done = os.write(self.fd, data)
            except BlockingIOError:
                return
            except OSError as error:
                raise Gone(error.errno or 0, "the controller is gone") from error
            self._bytes -= done
            if done < len(data):
                # Not a copy of the rest: the reader may take a line of megabytes page by page.
                self._waiting[0] = memoryview(data)[done:]
            else:
                self._waiting.popleft()
