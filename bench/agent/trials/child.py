"""Child processes of a trial: they end with the trial, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import traceback
from typing import Callable

from bench.agent import workers
from bench.agent.stage import SIGNALS


def fork(body: Callable[[], None]) -> int:
    """Start a child that runs ``body`` and dies with its parent; return its pid.

    :raises OSError: if the kernel refuses a process.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        for number in SIGNALS:  # the child has the stage's handlers, but not its threads
            signal.signal(number, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(workers.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == parent:  # else the parent died between fork and prctl
            body()
            status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
