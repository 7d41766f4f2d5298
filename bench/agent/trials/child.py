"""Processes of a trial: they end with it, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import traceback
from typing import Callable

from bench.agent import workers
from bench.agent.stage import SIGNALS


def fork(body: Callable[[], None]) -> int:
    """Start a child that runs ``body`` and dies with its parent; returns its pid.

    :raises OSError: if the kernel refuses one.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        for number in SIGNALS:  # of the stage's threads none came along; its handlers did
            signal.signal(number, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(workers.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == parent:  # else it died between fork and prctl
            body()
            status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
