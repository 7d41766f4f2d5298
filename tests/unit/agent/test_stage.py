"""Steps of a trial and the bell that tells of them."""

from __future__ import annotations

import os
import queue
import select
import signal
import threading
import time

import pytest

from bench.agent import stage as module
from bench.agent.stage import Ended, Stage


def test_a_step_that_was_taken_leaves_no_bell() -> None:
    stage = Stage.__new__(Stage)  # without its streams and signals, which are this process's
    stage._steps = queue.Queue()
    stage._bell_r, stage._bell_w = os.pipe()
    stage._steps.put({"op": "go"})
    late = threading.Timer(0.05, os.write, (stage._bell_w, b"\0"))
    late.start()
    assert stage.step() == {"op": "go"}
    late.join()
    assert not select.select([stage.fileno()], [], [], 0)[0]
    assert stage.step(0) is None
    os.close(stage._bell_r)
    os.close(stage._bell_w)


def test_what_is_being_put_back_is_not_torn_away() -> None:
    stage = Stage.__new__(Stage)
    stage._ending = False
    with pytest.raises(Ended, match=r"^$"):
        stage._end()
    stage._end()  # further signals change nothing


def test_a_trial_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[tuple[object, ...]] = []
    monkeypatch.setattr(os, "_exit", lambda status: ended.append(("exit", status)))
    monkeypatch.setattr(module, "LAST", 0.05)
    monkeypatch.setattr(signal, "pthread_kill", lambda *asked: ended.append(asked))
    Stage.__new__(Stage)._kill()
    deadline = time.monotonic() + 10
    while len(ended) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended == [(threading.main_thread().ident, signal.SIGTERM), ("exit", 3)]


def test_only_trials_are_run() -> None:
    assert callable(module._trial("guard"))
    for name in ("door", "locks", "no_such", "../guard", "os", "Guard"):
        with pytest.raises(module.Misuse, match=r"^trial: got .*, expected the name of a trial$"):
            module._trial(name)
