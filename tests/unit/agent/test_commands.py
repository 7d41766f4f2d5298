"""Commands that an agent refuses because of what it does already."""

import time

import pytest

from bench.agent.commands import Commands
from bench.agent.task import Misuse


def idle():
    return Commands(lambda event: None, lambda work, then: None, time.monotonic)


@pytest.mark.parametrize("op", ["serve", "prepare"])
@pytest.mark.parametrize("busy", ["_role", "_preparing"])
def test_an_agent_has_one_task(op, busy):
    made = idle()
    with pytest.raises(Misuse, match=r"^spec"):  # it would begin, had it been told what
        made.command({"op": op})
    setattr(made, busy, True)
    with pytest.raises(Misuse, match=f"^{op}: this agent has its task already$"):
        made.command({"op": op})
