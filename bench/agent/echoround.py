"""An order for an echo round: put on the board for the workers, and answered when they are done."""

from __future__ import annotations

import time
from typing import Any, Dict

from bench import wire
from bench.agent import board as cell
from bench.agent.client import Client
from bench.agent.task import PATIENCE_MS, Misuse, whole

WINDOW = 128
"""Default number of connections under way in a worker. On two cores with both ends on them, it took
the least CPU time of all from 32 to 4,096: 15 µs a message. 64 to 256 took nearly as little; a
larger window only makes every answer wait longer."""


class EchoRound:
    """One round over the held connections of a client."""

    def __init__(self, client: Client, command: Dict[str, Any]) -> None:
        """Put the order on the board.

        :raises Misuse: if the command is invalid; then the board is unchanged.
        """
        mode = command.get("mode")
        if mode not in ("pipelined", "sequential"):
            raise Misuse(f"mode: {mode!r} is none of pipelined, sequential")
        number, sample = whole(command, "number", 1, least=1), whole(command, "sample", 0)
        window = whole(command, "window", WINDOW, least=1)
        patience = whole(command, "patience_ms", PATIENCE_MS, least=1)
        self.sequential = mode == "sequential"
        self._board, self._crew = client.board, client.crew
        common = self._board.common
        common[cell.NUMBER], common[cell.WINDOW], common[cell.PATIENCE] = number, window, patience
        common[cell.SEQUENTIAL] = int(self.sequential)
        client.quotas(sample or self._board.total(cell.HELD))
        self._board.begin_round()
        self._before = self._counts()
        self._spent, self._began = self._crew.cpu_seconds(), time.monotonic()

    def _counts(self) -> Dict[str, int]:
        return {
            "asked": self._board.total(cell.ASKED),
            "answered": self._board.total(cell.ANSWERED),
            "wrong": self._board.total(cell.WRONG),
            "silent": self._board.total(cell.SILENT),
        }

    def answer(self) -> wire.Rounded:
        """Return the result, once all workers are done."""
        seconds, spent = time.monotonic() - self._began, self._crew.cpu_seconds() - self._spent
        came = {name: count - self._before[name] for name, count in self._counts().items()}
        return wire.Rounded(
            event="rounded",
            asked=came["asked"],
            answered=came["answered"],
            wrong=came["wrong"],
            silent=came["silent"],
            seconds=round(seconds, 6),
            latency=self._board.round_latency(),
            cpu_seconds=round(max(0.0, spent), 6),  # less if a worker has died
        )
