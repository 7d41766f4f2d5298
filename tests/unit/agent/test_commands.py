"""Commands that an agent refuses because of what it does already."""

import time

import pytest

from bench.agent.commands import Commands
from bench.agent.task import Misuse, Task


def idle():
    return Commands(
        Task(lambda event: None, time.monotonic), lambda event: None, lambda work, then: None
    )


@pytest.mark.parametrize("op", ["serve", "prepare"])
@pytest.mark.parametrize("busy", ["role", "preparing"])
def test_an_agent_has_one_task(op, busy):
    made = idle()
    with pytest.raises(Misuse, match=r"^spec"):  # it would begin, had it been told what
        made.command({"op": op})
    if busy == "role":
        made.task.role = True
    else:
        made._preparing = True
    with pytest.raises(Misuse, match=f"^{op}: this agent has its task already$"):
        made.command({"op": op})
