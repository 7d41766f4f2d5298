"""An order to churn: put on the board for the workers, and answered when they are done."""

from __future__ import annotations

import time
from typing import Any, Dict

from bench import wire
from bench.agent import board as cell
from bench.agent.client import Client, spread
from bench.agent.task import Misuse

MOST_RATE, MOST_SECONDS = 1e6, 86_400


class ChurnOrder:
    """One period of churn over the held connections of a client."""

    def __init__(self, client: Client, command: Dict[str, Any]) -> None:
        """Put the order on the board.

        :raises Misuse: if the command is invalid; then the board is unchanged.
        """
        rate = _positive(command, "rate", MOST_RATE)
        seconds = _positive(command, "seconds", MOST_SECONDS)
        self._board = client.board
        common = self._board.common
        common[cell.HALT] = common[cell.MOST_LOST] = 0
        common[cell.CHURN_MS] = max(1, round(seconds * 1000))
        spread(self._board, round(rate * seconds))
        self._before = self._counts()
        self._errors, self._latency = self._board.errors(), self._board.latency()
        self._began = time.monotonic()

    def _counts(self) -> Dict[str, int]:
        return {
            "closed": self._board.total(cell.CLOSED),
            "opened": self._board.total(cell.OPENED),
            "lost": self._board.total(cell.LOST),
        }

    def answer(self) -> wire.Churned:
        """Return the result, once all workers are done."""
        came = {name: count - self._before[name] for name, count in self._counts().items()}
        return wire.Churned(
            event="churned",
            closed=came["closed"],
            opened=came["opened"],
            lost=came["lost"],
            errors=_gained(self._board.errors(), self._errors),
            latency=_gained(self._board.latency(), self._latency),
            seconds=round(time.monotonic() - self._began, 6),
        )


def _gained(now: Dict[str, int], before: Dict[str, int]) -> Dict[str, int]:
    return {key: n - before.get(key, 0) for key, n in now.items() if n > before.get(key, 0)}


def _positive(command: Dict[str, Any], key: str, most: float) -> float:
    value = command.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= most:
        raise Misuse(f"{key}: {value!r} is not a number above 0, up to {most:g}")
    return float(value)
