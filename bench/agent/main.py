"""The agent's main loop: commands in, events out, everything closed at the end.

One thread owns all state. What takes seconds and only reads (evidence, the handshake) runs in a
thread of its own and hands its event back through a queue.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, Optional

from bench import wire
from bench.agent import probe, workers
from bench.agent.commands import Commands
from bench.agent.duty import Fault, Misuse

STOP_PATIENCE = 1.5
"""Seconds that workers get to reset their connections before they are killed."""


class Agent:
    """One agent, from hello to its end."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._out = os.dup(1)
        os.dup2(2, 1)  # nothing but events may reach the controller
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self._stopping = False
        self._input = b""
        self.duty = Commands(self.say, self.aside, self._clock)

    def _on_signal(self, *_: Any) -> None:
        self._stopping = True

    def _clock(self) -> float:
        return time.monotonic() - self._started

    def say(self, event: Any) -> None:
        """Write one event; a controller that is gone ends the agent."""
        data = wire.encode(event)
        try:
            while data:
                data = data[os.write(self._out, data) :]
        except OSError:
            self._stopping = True

    def aside(self, work: Callable[[], Any], then: Callable[[Any], None]) -> threading.Thread:
        """Run ``work`` in a thread, and ``then`` with its result in the main loop.

        An exception of ``work`` is raised again in the main loop.

        :raises Shortage: if there can be no further thread.
        """

        def body() -> None:
            try:
                result = work()
            except BaseException as error:
                failure = error
                self._jobs.put(lambda: self._fail(failure))
            else:
                self._jobs.put(lambda: then(result))
            with contextlib.suppress(BlockingIOError):  # full: it is awake already
                os.write(self._wake_w, b"\0")

        thread = threading.Thread(target=body, daemon=True)
        workers.begin(thread)
        return thread

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, Misuse):
            self.say({"event": "error", "kind": error.kind, "message": str(error)})
        elif isinstance(error, (Fault, OSError, probe.Unreadable)):
            self.say({"event": "error", "kind": "fault", "message": str(error)})
        else:
            traceback.print_exception(type(error), error, error.__traceback__)
            message = f"{type(error).__name__}: {error}"
            self.say({"event": "error", "kind": "fault", "message": message})

    def run(self) -> None:
        """Serve commands until told to stop or the input ends."""
        self.say(
            {
                "event": "hello",
                "version": wire.VERSION,
                "pid": os.getpid(),
                "python": platform.python_version(),
                "cores": os.cpu_count() or 1,
                "nofile_hard": workers.nofile_found()[1],
            }
        )
        stopped: Optional[Dict[str, Any]] = None
        while not self._stopping:
            poll = select.poll()
            for fd in (0, self._wake_r, *self.duty.fds()):
                poll.register(fd, select.POLLIN)
            due = self.duty.due()
            timeout = None if due is None else max(0, (due - time.monotonic()) * 1000)
            moved = {fd for fd, _ in poll.poll(timeout)}
            if self._wake_r in moved:
                os.read(self._wake_r, 4096)
            self._attempt(self.duty.turn)
            while not self._jobs.empty():
                self._attempt(self._jobs.get())
            if 0 in moved and self._listen():
                stopped = {"event": "stopped"}
                break
        self._end()
        if stopped:
            self.say(stopped)

    def _attempt(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as error:
            self._fail(error)

    def _listen(self) -> bool:
        """Read commands; True when one of them is stop."""
        data = os.read(0, 1 << 20)
        if not data:
            self._stopping = True
            return False
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            try:
                command = wire.decode(line)
            except wire.WireError as error:
                self._fail(Misuse(str(error)))
                continue
            if command.get("op") == "stop":
                return True
            self._attempt(lambda c=command: self.duty.command(c))  # type: ignore[misc]
        return False

    def _end(self) -> None:
        """Close everything within :data:`STOP_PATIENCE`, then by force."""
        probe.end_children()
        self.duty.end(time.monotonic() + STOP_PATIENCE)
        home = Path(sys.argv[0]).resolve().parent
        if home.name.startswith("connlab."):
            shutil.rmtree(home, ignore_errors=True)


def main() -> None:
    """Entry point of the zipapp."""
    agent = Agent()
    agent.run()
    sys.stderr.flush()
    os._exit(0)  # daemon threads may be in the middle of a read
