"""The agent's main loop: commands in, events out, and everything closed at the end.

The agent ends, and closes everything, in three cases: the controller says so, its input ends, or it
has heard nothing from its controller for some time. (A controller that is suspended or cut off
closes nothing.)

One thread owns all state. Work that takes seconds and only reads (evidence, the handshake) runs in
a separate thread, which returns its event through a queue.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import queue
import select
import signal
import threading
import time
import traceback
from typing import Any, Callable, Dict, Optional

from bench import wire
from bench.agent import home, hostlock, probe, workers
from bench.agent.commands import Commands
from bench.agent.outbox import Gone, Outbox
from bench.agent.task import TICK, Fault, Misuse, Task

STOP_PATIENCE = 1.5
"""Seconds that workers get to reset their connections before they are killed."""

LAST_WORDS = 1.0
"""Seconds to send the last events when everything is closed."""


class Agent:
    """One agent, from hello to its end."""

    def __init__(self, options: wire.AgentOptions) -> None:
        self._started = self._heard = time.monotonic()
        self._silence = options["silence_seconds"]
        self._out = Outbox(os.dup(1))
        os.dup2(2, 1)  # only events may reach the controller
        os.set_blocking(2, False)  # and a message that nobody reads must not block anything
        self._alive_at = 0.0
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
        self.task = Task(self.say, self._clock)
        self.commands = Commands(self.task, self.say, self.aside)

    def _on_signal(self, *_: Any) -> None:
        self._stopping = True

    def _clock(self) -> float:
        return time.monotonic() - self._started

    def say(self, event: Any) -> None:
        """Send one event. If the controller is gone, the agent ends."""
        try:
            self._out.put(event)
        except Gone:
            self._stopping = True

    def aside(self, work: Callable[[], Any], then: Callable[[Any], None]) -> threading.Thread:
        """Run ``work`` in a thread, then ``then`` with its result in the main loop.

        An exception of ``work`` is handled in the main loop.

        :raises Shortage: if the kernel refuses another thread.
        """

        def body() -> None:
            try:
                result = work()
            except BaseException as error:
                failure = error
                self._jobs.put(lambda: self._fail(failure))
            else:
                self._jobs.put(lambda: then(result))
            with contextlib.suppress(BlockingIOError):  # full: the main loop is awake already
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
            with contextlib.suppress(OSError):
                traceback.print_exception(type(error), error, error.__traceback__)
            message = f"{type(error).__name__}: {error}"
            self.say({"event": "error", "kind": "fault", "message": message})

    def refuse(self, why: str) -> None:
        """Report why this host cannot be used, and end."""
        self.say({"event": "error", "kind": "refused", "message": why})
        self._end()
        self._out.finish(LAST_WORDS)

    def run(self) -> None:
        """Carry out commands until ``stop``, or until the input ends."""
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
            for fd in (0, self._wake_r, *self.task.fds()):
                poll.register(fd, select.POLLIN)
            if self._out:
                poll.register(self._out.fd, select.POLLOUT)
            moved = {fd for fd, _ in poll.poll(max(0.0, self._due() - time.monotonic()) * 1000)}
            if self._wake_r in moved:
                os.read(self._wake_r, 4096)
            if self._out.fd in moved:
                self._flush()
            self._attempt(self.task.turn)
            while not self._jobs.empty():
                self._attempt(self._jobs.get())
            if 0 in moved:
                if self._listen():
                    stopped = {"event": "stopped"}
                    break
            elif time.monotonic() - self._heard > self._silence:
                complain(f"no word from the controller for {self._silence:g} s: everything closed")
                break
            self._live()
        self._end()
        if stopped:
            self.say(stopped)
        self._out.finish(LAST_WORDS)

    def _due(self) -> float:
        """Return when there is something to do at the latest, monotonic seconds."""
        due = self.task.due()
        return min(self._heard + self._silence, self._alive_at if due is None else due)

    def _live(self) -> None:
        """Send a sign of life if there are no ticks yet."""
        now = time.monotonic()
        if self.task.due() is None and now >= self._alive_at:
            self._alive_at = now + TICK
            self.say({"event": "alive"})

    def _flush(self) -> None:
        try:
            self._out.flush()
        except Gone:
            self._stopping = True

    def _attempt(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as error:
            self._fail(error)

    def _listen(self) -> bool:
        """Read commands; return True when one of them is ``stop``."""
        data = os.read(0, 1 << 20)
        if not data:
            self._stopping = True
            return False
        self._heard = time.monotonic()
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            try:
                command = wire.decode(line)
            except wire.WireError as error:
                self._fail(Misuse(str(error)))
                continue
            if command.get("op") == "stop":
                return True
            if command.get("op") == "beat":
                continue
            self._attempt(functools.partial(self.commands.command, command))
        return False

    def _end(self) -> None:
        """Close everything within :data:`STOP_PATIENCE`, and kill the workers that are left."""
        probe.end_children()
        self.task.end(time.monotonic() + STOP_PATIENCE)
        home.leave()


def complain(line: str) -> None:
    """Write a line to standard error, if that is possible without waiting."""
    with contextlib.suppress(OSError):
        os.write(2, line.encode() + b"\n")


def main(options: wire.AgentOptions) -> None:
    """Run one agent to its end."""
    home.mark()
    agent = Agent(options)
    lock = options["lock"]
    try:
        held = hostlock.hold(**lock) if lock else None
    except (hostlock.Held, OSError) as error:
        agent.refuse(str(error))
    else:
        agent.run()
        if lock and held is not None:
            hostlock.let_go(held, lock["owner"])
    os._exit(0)  # daemon threads may be in the middle of a read
