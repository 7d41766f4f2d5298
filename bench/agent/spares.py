"""Spare open files, so that evidence can be gathered when the kernel has no files left.

At ``fs.file-max`` only root can open a file (fs/file_table.c ``alloc_empty_file``). Then a tool can
open neither its program, nor its libraries, nor the pipe that it prints to.
"""

from __future__ import annotations

import os
from typing import List

SPARES = 48
"""Open files that gathering evidence takes at a time: some 20 for ss(8) with its libraries and
pipes, and as many again to be safe. They fit in the reserve of the agent's own descriptors."""


class Spares:
    """Files that are only held open. Must be taken after the fork, or the workers hold them too."""

    def __init__(self) -> None:
        self._fds: List[int] = []

    def take(self) -> None:
        """Open the spare files that are missing, or as many as possible."""
        try:
            while len(self._fds) < SPARES:
                self._fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return

    def give(self) -> None:
        """Close the spare files, so that tools can open files."""
        while self._fds:
            os.close(self._fds.pop())
