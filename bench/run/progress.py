"""A run's progress: a bar on a terminal, plain lines, or one JSON line per event."""

from __future__ import annotations

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from bench.run.curve import Progress
from bench.units import printable

EVERY_SECONDS = 2.0
"""Time between two plain lines of one phase."""


def line(now: Progress) -> str:
    """Return one line: held / target, rate, p99, MemAvailable, time left; or the note."""
    if now.note:
        return printable(f"{now.phase}: {now.note}")
    left = "" if now.seconds_left is None else f", {now.seconds_left:.0f} s left"
    if now.phase != "ramp":
        return (
            f"{now.phase}: {now.held:,} held, MemAvailable {now.mem_available_kib / 2**20:.1f} GiB"
            + left
        )
    return (
        f"ramp: {now.held:,} / {now.target:,} held, {now.rate:,.0f} conn/s, "
        f"p99 {now.p99_us / 1000:.1f} ms, MemAvailable {now.mem_available_kib / 2**20:.1f} GiB"
        + left
    )


def emit(event: dict[str, Any]) -> None:
    """Write one event as a JSON line on standard output.

    :raises KeyboardInterrupt: if the reader is gone: the program that started the run has ended
    """
    try:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # it is flushed again at exit
        raise KeyboardInterrupt from None


class _Paced(ABC):
    """A view that shows every note, every new phase, and one other update every two seconds."""

    def __init__(self) -> None:
        self._shown = 0.0
        self._phase = ""

    def update(self, now: Progress) -> None:
        if now.note:  # a note comes only once
            self.show(now)
            return
        moment = time.monotonic()
        if now.phase == self._phase and moment - self._shown < EVERY_SECONDS - 0.1:
            return
        self._shown, self._phase = moment, now.phase
        self.show(now)

    @abstractmethod
    def show(self, now: Progress) -> None:
        """Show one update."""


class Lines(_Paced):
    """Plain lines."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def show(self, now: Progress) -> None:
        """Print one line."""
        self._console.print(line(now), highlight=False, markup=False, soft_wrap=True)


class Ndjson(_Paced):
    """One JSON line per event on standard output, with the plain line in ``text``."""

    def show(self, now: Progress) -> None:
        """Emit one event."""
        emit({"event": "progress", **asdict(now), "text": line(now)})


class Bar:
    """A bar on a terminal."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def update(self, now: Progress) -> None:
        """Move the bar."""
        if now.note:
            self._bars.console.print(line(now), highlight=False, markup=False, soft_wrap=True)
            return
        text = line(now).partition(": ")[2]
        if self._task is None:
            self._task = self._bars.add_task("", total=now.target, phase=now.phase, text=text)
        self._bars.update(self._task, completed=now.held, phase=now.phase, text=text)


@contextmanager
def view(show: str, console: Console) -> Iterator[Callable[[Progress], None]]:
    """Yield the function to call with each update, for ``auto``, ``plain`` or ``ndjson``.

    ``auto`` shows a bar on a terminal and plain lines elsewhere.
    """
    if show == "ndjson":
        yield Ndjson().update
    elif show == "auto" and console.is_terminal:
        columns = (
            TextColumn("{task.fields[phase]:>7}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[text]}", markup=False),
        )
        with Bars(*columns, console=console) as bars:
            yield Bar(bars).update
    else:
        yield Lines(console).update
