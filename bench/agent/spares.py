"""Open files kept back, so that there can be evidence of a kernel that has none left.

At ``fs.file-max`` nobody but root can open a file (fs/file_table.c ``alloc_empty_file``): not a
tool, not its libraries, not the pipe that it prints to.
"""

from __future__ import annotations

import os
from typing import List

SPARES = 48
"""Open files that gathering evidence takes at a time: some 20 for ss(8) with its libraries and
pipes, and as many again to be safe. They fit the reserve of the agent's own descriptors."""


class Spares:
    """Files that are open for nothing. To be taken after the fork: else workers hold them too."""

    def __init__(self) -> None:
        self._fds: List[int] = []

    def take(self) -> None:
        """Keep back as many as are missing, or as many as there are."""
        try:
            while len(self._fds) < SPARES:
                self._fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return

    def give(self) -> None:
        """Let them go."""
        while self._fds:
            os.close(self._fds.pop())
