"""Steps of a trial and the bell that tells of them."""

from __future__ import annotations

import os
import queue
import select
import threading

from bench.agent.stage import Stage


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
