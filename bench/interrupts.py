"""Ctrl-C and SIGTERM: the first ends the run in order, the second at once.

Closing what a run has opened takes seconds, and is bounded. It is not torn apart by the signals
that come with the first: a terminal sends SIGINT to all processes of a command, and Ansible sends
SIGTERM to its child after that. Whoever interrupts once more does not want to wait, and learns
what could not be cleaned up.
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
"""Signals within this time of the last one are taken for the same."""

EXIT_STATUS = 130


def write_now(fd: int, text: str) -> None:
    """Write a line from a signal handler, if it can be written without waiting for a reader."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    with contextlib.suppress(OSError):
        if poll.poll(0):
            os.write(fd, f"{text}\n".encode())


def _to_stderr(line: str) -> None:
    write_now(2, f"connlab: {line}")


class Interrupts:
    """The process's own count of them. There is one: :data:`INTERRUPTS`."""

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
        """The signal handler."""
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
        except (Exception, KeyboardInterrupt):  # interrupted while it said something else
            _to_stderr(line)

    def answers(self, key: object, left: Callable[[], list[str]] | None) -> None:
        """Have ``left`` say what of something is not cleaned up yet; None: all of it is."""
        if left is None:
            self._open.pop(id(key), None)
        else:
            self._open[id(key)] = left

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Have the signals handled, in the main thread."""
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
        """Know of no interrupt."""
        self._seen, self._last, self._pending = 0, -SAME_SECONDS, False

    @contextlib.contextmanager
    def cleaning(self) -> Iterator[None]:
        """Let the first interrupt wait meanwhile: half a clean-up leaves what it is to remove.

        It is raised at the end of it, so that nothing else is begun.

        :raises KeyboardInterrupt: at the end of the outermost, if there was one.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        if not self._cleaning and not self._handling:
            self._begin()
        self._cleaning += 1
        before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            # Not those of handled(): a program of its own, such as a test.
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
    """Whether a signal means anything: what nohup(1) and shells have ignored stays so (POSIX)."""
    handler = signal.getsignal(number)
    return number == signal.SIGTERM or handler not in (signal.SIG_IGN, None)


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


INTERRUPTS = Interrupts()
"""The process's own."""
