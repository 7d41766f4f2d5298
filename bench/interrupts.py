"""Ctrl-C and SIGTERM: the first ends the run in order, the second ends it at once.

Closing what a run has opened takes seconds and is bounded. Signals that follow the first within a
second do not disturb it: a terminal sends SIGINT to all processes of a command, and Ansible then
sends SIGTERM to its child. A user who interrupts once more does not want to wait, and is shown what
could not be cleaned up.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

SAME_SECONDS = 1.0
"""Signals within this time of the last one count as the same interrupt."""

EXIT_STATUS = 130


def write_now(fd: int, text: str) -> None:
    """Write a line from a signal handler, unless that would mean waiting for a reader."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    with contextlib.suppress(OSError):
        if poll.poll(0):
            os.write(fd, f"{text}\n".encode())


def _to_stderr(line: str) -> None:
    write_now(2, f"connlab: {line}")


class Interrupts:
    """The interrupts of this process. There is one instance: :data:`INTERRUPTS`."""

    def __init__(self) -> None:
        self.say: Callable[[str], None] = _to_stderr
        """Called with one line, from a signal handler."""
        self._seen = 0
        self._last = -SAME_SECONDS
        self._cleaning = 0
        self._handling = False
        self._pending = False
        self._open: dict[int, Callable[[], list[str]]] = {}

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        now = time.monotonic()
        if now - self._last < SAME_SECONDS:
            return
        self._last = now
        self._seen += 1
        if self._seen > 1:
            self._end_at_once()
        if not self._cleaning:
            raise KeyboardInterrupt
        self._pending = True
        self._say_safely("closing what was opened; interrupt once more to end at once")

    def _end_at_once(self) -> None:
        try:
            left = [line for lines in list(self._open.values()) for line in lines()]
            what = "; ".join(left) if left else "nothing is known to be left"
            self._say_safely(f"interrupted twice; not cleaned up: {what}")
        finally:
            os._exit(EXIT_STATUS)

    def _say_safely(self, line: str) -> None:
        try:
            self.say(line)
        except (Exception, KeyboardInterrupt):  # interrupted while it was writing another line
            _to_stderr(line)

    def answers(self, key: object, left: Callable[[], list[str]] | None) -> None:
        """Register ``left``, which lists what of ``key`` is not cleaned up yet; None: all is."""
        if left is None:
            self._open.pop(id(key), None)
        else:
            self._open[id(key)] = left

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals while the context lasts, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}
        for number in SIGNALS:
            if _is_heeded(number):
                before[number] = signal.signal(number, self.handle)
        self._begin()
        self._handling = True
        try:
            yield
        finally:
            self._handling = False
            _restore(before)

    def _begin(self) -> None:
        """Forget all interrupts."""
        self._seen, self._last, self._pending = 0, -SAME_SECONDS, False

    @contextlib.contextmanager
    def cleaning(self) -> Iterator[None]:
        """Hold back the first interrupt during a clean-up, so that the clean-up is completed.

        The interrupt is raised at the end of the clean-up, so that nothing else begins.

        :raises KeyboardInterrupt: at the end of the outermost clean-up, if there was an interrupt.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        if not self._cleaning and not self._handling:
            self._begin()
        self._cleaning += 1
        before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            # Outside handled(): another program uses this module, such as a test.
            if signal.getsignal(number) != self.handle and _is_heeded(number):
                before[number] = signal.signal(number, self.handle)
        try:
            yield
        finally:
            self._cleaning -= 1
            _restore(before)
        if self._pending and not self._cleaning:
            self._pending = False
            raise KeyboardInterrupt


def _is_heeded(number: int) -> bool:
    """Return whether to handle a signal: one that nohup(1) or a shell ignores stays ignored
    (POSIX)."""
    handler = signal.getsignal(number)
    return number == signal.SIGTERM or handler not in (signal.SIG_IGN, None)


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


INTERRUPTS = Interrupts()
"""The interrupts of this process."""
