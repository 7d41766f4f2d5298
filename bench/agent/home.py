"""The directory that the agent was pushed to.

It is removed with the agent. The agent's path marks every process that the agent has started.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys

from bench import wire
from bench.agent import remains


def mark() -> None:
    """Mark all tools that are started from now on with the agent's path."""
    os.environ[remains.MARK] = os.path.abspath(sys.argv[0])


def leave() -> None:
    """Remove the agent's own file and its directory, if it is alone there."""
    path = os.path.abspath(sys.argv[0])
    if not re.fullmatch(wire.PUSHED, path):
        return
    folder, name = os.path.split(path)
    with contextlib.suppress(OSError):
        if os.listdir(folder) == [name] and not os.path.islink(folder):
            os.unlink(path)
            os.rmdir(folder)
