"""One side of a small experiment: a process that runs one trial and tells its figures.

``python3 agent.pyz trial``. It says ``hello`` and takes ``trial`` {name, args}; the module of that
name in :mod:`bench.agent.trials` then has the main thread. The end of the input, ``stop`` and the
usual signals raise :class:`Ended` in it, wherever it is: it puts back what it changed, and the
process ends, within seconds.
"""

from __future__ import annotations

import importlib
import os
import platform
import queue
import re
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Dict, NoReturn, Optional

from bench import wire
from bench.agent import probe

ALIVE = 1.0
"""Seconds between two signs of life."""

LAST = 10.0
"""Seconds that a trial gets to put back what it changed before the process ends all the same."""

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""Those that end a trial."""

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


class Ended(BaseException):
    """The trial has to end: not an error, so that no trial takes it for one."""


class Misuse(Exception):
    """What was asked for makes no sense: one line that names field, value and what was expected."""


class Stage:
    """What a trial has of its controller: steps come in, figures go out."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        os.dup2(2, 1)  # nothing but events may reach the controller
        self._lock = threading.Lock()
        self._steps: queue.Queue[Dict[str, Any]] = queue.Queue()
        self._ending = False
        self._bell_r, self._bell_w = os.pipe()
        for number in SIGNALS:
            signal.signal(number, self._end)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def begin(self) -> None:
        """Say hello, and hear the controller from now on."""
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
        threading.Thread(target=self._live, daemon=True).start()

    def fileno(self) -> int:
        """A descriptor that is readable while a step waits: for trials that wait for others too."""
        return self._bell_r

    def step(self, seconds: Optional[float] = None) -> Optional[Dict[str, Any]]:
        """The next step's fields; None if none came in time."""
        try:
            found = self._steps.get(timeout=seconds)
        except queue.Empty:
            return None
        os.read(self._bell_r, 1)  # waits for it: the bell is rung just after the step was put
        return found

    def tell(self, **figures: Any) -> None:
        """Answer the step that was taken last."""
        self._say({"event": "told", **figures})

    def fail(self, kind: str, message: str) -> None:
        """Say that the trial has failed; ``kind`` as in :mod:`bench.wire`."""
        self._say({"event": "error", "kind": kind, "message": message})

    def _say(self, event: Dict[str, Any]) -> None:
        data = wire.encode(event)
        with self._lock:
            try:
                while data:
                    data = data[os.write(self._out, data) :]
            except OSError:
                self._kill()

    def _live(self) -> None:
        while True:
            time.sleep(ALIVE)
            self._say({"event": "alive"})

    def _listen(self) -> None:
        rest = b""
        while True:
            data = os.read(0, 1 << 16)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                try:
                    command = wire.decode(line)
                except wire.WireError as error:
                    self.fail("input", str(error))
                    continue
                if command.get("op") == "stop":
                    data = b""
                    break
                # The step first: whom the bell wakes finds it.
                self._steps.put(command)
                os.write(self._bell_w, b"\0")
            if not data:
                self._kill()
                return

    def _kill(self) -> None:
        """Have the main thread end, and see to it that it does."""
        # To the main thread itself: a signal that another one takes wakes it from no wait.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        watch = threading.Timer(LAST, os._exit, (3,))
        watch.daemon = True
        watch.start()

    def _end(self, *_: Any) -> None:
        if not self._ending:  # once: what is being put back must not be torn away
            self._ending = True
            raise Ended


def main() -> NoReturn:
    """Entry point of ``python3 agent.pyz trial``."""
    try:
        stage = Stage()
        stage.begin()
        _serve(stage)
    except Ended:
        pass
    finally:
        home = Path(sys.argv[0]).resolve().parent
        if home.name.startswith("connlab."):
            shutil.rmtree(home, ignore_errors=True)
    sys.stderr.flush()
    os._exit(0)  # daemon threads may be in the middle of a read


def _serve(stage: Stage) -> None:
    """Run one trial after the other until the end."""
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
            traceback.print_exc()
            stage.fail("fault", f"{name}: {type(error).__name__}: {error}")


def _trial(name: str) -> Any:
    """A trial's function. :raises Misuse: if there is none of that name."""
    unknown = Misuse(f"trial: got {name!r}, expected the name of a trial")
    if not _NAME.match(name):
        raise unknown
    try:
        module = importlib.import_module(f"bench.agent.trials.{name}")
    except ModuleNotFoundError:
        raise unknown from None
    if not hasattr(module, "run"):  # a part of others
        raise unknown
    return module.run
