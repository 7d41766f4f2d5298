"""Processes of a trial end with it."""

from __future__ import annotations

import os
import select
import signal
import time

from bench.agent.trials import child


def test_a_child_dies_with_its_parent() -> None:
    reading, writing = os.pipe()

    def body() -> None:
        # Only now: a child that finds its parent gone before it begins ends by itself.
        os.write(writing, f"{os.getpid()}\n".encode())
        time.sleep(60)

    parent = os.fork()
    if not parent:
        try:
            child.fork(body)
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as lines:
        pid = int(lines.readline())
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        # Both had the other end: it is closed for good when neither is there.
        gone, _, _ = select.select([lines], [], [], 10)
        if not gone:
            os.kill(pid, signal.SIGKILL)
        assert gone


def test_a_child_is_ended_by_the_signals_that_a_trial_handles() -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        pid = child.fork(lambda: time.sleep(60))
        os.kill(pid, 0)
        deadline = time.monotonic() + 10
        status = 0
        while not status and time.monotonic() < deadline:
            os.kill(pid, signal.SIGTERM)  # until it has its own handlers
            done, status = os.waitpid(pid, os.WNOHANG)
            time.sleep(0.01)
        assert done == pid
        assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_child_that_fails_says_so_by_its_status() -> None:
    def fail() -> None:
        os.close(2)  # the traceback is of no interest
        raise OSError("no")

    assert os.waitstatus_to_exitcode(os.waitpid(child.fork(fail), 0)[1]) == 1
    assert os.waitstatus_to_exitcode(os.waitpid(child.fork(lambda: None), 0)[1]) == 0
