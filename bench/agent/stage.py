"""One side of a small experiment: a process that runs one trial and reports its figures.

Started as ``python3 agent.pyz trial OPTIONS``, it sends ``hello`` and accepts ``trial`` {name,
args}. The module of that name in :mod:`bench.agent.trials` then has the main thread. Several events
end the trial: the end of the input, ``stop``, silence of the controller for some time, and the
usual signals. Each raises :class:`Ended` in the main thread, wherever it is. The trial then
restores what it changed, and the process ends within seconds.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import queue
import re
import resource
import select
import signal
import threading
import time
import traceback
from typing import Any, Dict, NoReturn, Optional

from bench import wire
from bench.agent import home, hostlock, probe
from bench.agent.outbox import Gone, Outbox

ALIVE = 1.0
"""Seconds between two signs of life."""

LAST = 10.0
"""Seconds that a trial has to restore what it changed; then the process ends in any case."""

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""Signals that end a trial."""

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


class Ended(BaseException):
    """The trial has to end. This is not an error, so that no trial handles it as one."""


class Misuse(Exception):
    """An invalid command: one line with the field, the value and what was expected."""


class Stage:
    """A trial's link to its controller: steps come in, figures go out."""

    def __init__(self, silence: float) -> None:
        """Take over standard input and output.

        :param silence: seconds without a word from the controller that end the trial
        """
        self._silence = silence
        self._out = Outbox(os.dup(1))
        os.dup2(2, 1)  # only events may reach the controller
        os.set_blocking(2, False)
        self._steps: queue.Queue[Dict[str, Any]] = queue.Queue()
        self._ending = False
        self._bell_r, self._bell_w = os.pipe()
        for number in SIGNALS:
            signal.signal(number, self._end)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def begin(self) -> None:
        """Send hello, and start to listen to the controller."""
        self._say(
            {
                "event": "hello",
                "version": wire.VERSION,
                "pid": os.getpid(),
                "python": platform.python_version(),
                "cores": os.cpu_count() or 1,
                "nofile_hard": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            }
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def fileno(self) -> int:
        """Return a descriptor that is readable while a step waits, for trials that poll."""
        return self._bell_r

    def step(self, seconds: Optional[float] = None) -> Optional[Dict[str, Any]]:
        """Return the next step's fields; None if no step arrived in time."""
        try:
            found = self._steps.get(timeout=seconds)
        except queue.Empty:
            return None
        os.read(self._bell_r, 1)  # blocks until the bell rings, just after the step was put
        return found

    def tell(self, **figures: Any) -> None:
        """Answer the latest step."""
        self._say({"event": "told", **figures})

    def fail(self, kind: str, message: str) -> None:
        """Report that the trial has failed; ``kind`` as in :mod:`bench.wire`."""
        self._say({"event": "error", "kind": kind, "message": message})

    def _say(self, event: Dict[str, Any]) -> None:
        try:
            self._out.put(event)
        except Gone:
            self._kill()

    def finish(self) -> None:
        """Send what has not been sent yet, for a second at most."""
        self._out.finish(ALIVE)

    def _listen(self) -> None:
        """Listen to the controller, send signs of life, and end the trial when it has to end."""
        rest = b""
        heard = time.monotonic()
        alive_at = 0.0
        while True:
            now = time.monotonic()
            if now >= alive_at:
                alive_at = now + ALIVE
                self._say({"event": "alive"})
            poll = select.poll()
            poll.register(0, select.POLLIN)
            if self._out:
                poll.register(self._out.fd, select.POLLOUT)
            moved = {fd for fd, _ in poll.poll(max(0.0, alive_at - now) * 1000)}
            if self._out.fd in moved:
                self._say_rest()
            if 0 not in moved:
                if time.monotonic() - heard > self._silence:
                    self._kill()
                    return
                continue
            data = os.read(0, 1 << 16)
            heard = time.monotonic()
            *lines, rest = (rest + data).split(b"\n")
            if not data or not all(map(self._hear, lines)):
                self._kill()
                return

    def _say_rest(self) -> None:
        try:
            self._out.flush()
        except Gone:
            self._kill()

    def _hear(self, line: bytes) -> bool:
        """Handle one command; return False if it is the last."""
        try:
            command = wire.decode(line)
        except wire.WireError as error:
            self.fail("input", str(error))
            return True
        if command.get("op") == "stop":
            return False
        if command.get("op") != "beat":
            # The step first: when the bell wakes the trial, the step is there.
            self._steps.put(command)
            os.write(self._bell_w, b"\0")
        return True

    def _kill(self) -> None:
        """End the main thread, and make sure that the process ends."""
        # To the main thread itself: a signal that another thread receives does not end its wait.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        watch = threading.Timer(LAST, os._exit, (3,))
        watch.daemon = True
        watch.start()

    def _end(self, *_: Any) -> None:
        if not self._ending:  # once: a second exception would interrupt the restoring
            self._ending = True
            raise Ended


def main(options: wire.AgentOptions) -> NoReturn:
    """Run trials until the end of the input."""
    home.mark()
    lock = options["lock"]
    held = None
    try:
        stage = Stage(options["silence_seconds"])
        try:
            held = hostlock.hold(**lock) if lock else None
            stage.begin()
            _serve(stage)
        except (hostlock.Held, OSError) as error:
            stage.fail("refused", str(error))
    except Ended:
        pass
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # nothing interrupts the clean-up
        home.leave()
        if lock and held is not None:
            hostlock.let_go(held, lock["owner"])
    stage.finish()
    os._exit(0)  # daemon threads may be in the middle of a read


def _serve(stage: Stage) -> None:
    """Run one trial after the other, until the process ends."""
    while True:
        command = stage.step() or {}
        name, args = command.get("name"), command.get("args")
        if command.get("op") != "trial" or not isinstance(args, dict):
            stage.fail("input", f"op: got {command.get('op')!r}, expected trial with name and args")
            continue
        try:
            stage.tell(**_trial(str(name))(stage, args))
        except Misuse as error:
            stage.fail("input", str(error))
        except (OSError, probe.Unreadable) as error:
            stage.fail("fault", f"{name}: {error}")
        except Exception as error:
            with contextlib.suppress(OSError):
                traceback.print_exc()
            stage.fail("fault", f"{name}: {type(error).__name__}: {error}")


def _trial(name: str) -> Any:
    """Return a trial's function. :raises Misuse: if there is no trial of that name."""
    unknown = Misuse(f"trial: got {name!r}, expected the name of a trial")
    if not _NAME.match(name):
        raise unknown
    try:
        module = importlib.import_module(f"bench.agent.trials.{name}")
    except ModuleNotFoundError:
        raise unknown from None
    if not hasattr(module, "run"):  # a module that trials share
        raise unknown
    return module.run
