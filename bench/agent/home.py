"""The directory that an agent was pushed into: it goes with the agent, and its path is the sign of
all that the agent has started."""

from __future__ import annotations

import contextlib
import os
import re
import sys

from bench import wire
from bench.agent import remains


def mark() -> None:
    """Have all tools that are started from now on carry the agent's path."""
    os.environ[remains.MARK] = os.path.abspath(sys.argv[0])


def leave() -> None:
    """Remove the agent's own file and its directory, if nothing else is in it."""
    path = os.path.abspath(sys.argv[0])
    if not re.fullmatch(wire.PUSHED, path):
        return
    folder, name = os.path.split(path)
    with contextlib.suppress(OSError):
        if os.listdir(folder) == [name] and not os.path.islink(folder):
            os.unlink(path)
            os.rmdir(folder)
