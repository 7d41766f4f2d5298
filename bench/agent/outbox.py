"""What an agent has to say to its controller: written as far as it goes, never waited for.

A controller that is suspended, or cut off, reads nothing, and soon a pipe and an SSH window are
full. An agent that then blocked in write(2) would neither hear ``halt`` nor see the end of its
input, nor watch its memory.
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
"""Events that the next one of their kind makes up for."""

DROP_ABOVE = 1 << 16
"""Bytes waiting from which on those are dropped: as much as a pipe holds (pipe(7))."""

MOST_BYTES = 1 << 26
"""Bytes that may wait: answers are asked for one at a time, so more is nobody's."""


class Gone(OSError):
    """The controller reads no more: it has closed the pipe, or left too much unread."""


class Outbox:
    """Events on their way out through a descriptor, which is made not to block."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._waiting: Deque[Union[bytes, memoryview]] = deque()
        self._bytes = 0
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Whether something waits."""
        return bool(self._waiting)

    def put(self, event: Any) -> None:
        """Write an event, or keep it until there is room.

        :raises Gone: if nobody reads any more.
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
        """Write what goes now. :raises Gone: if nobody reads any more."""
        with self._lock:
            self._write()

    def finish(self, seconds: float) -> None:
        """Write what waits, for at most that long. Never raises."""
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
                # Not a copy of the rest: a reader may take a line of megabytes page by page.
                self._waiting[0] = memoryview(data)[done:]
            else:
                self._waiting.popleft()
