"""The directory that runs are kept in.

``results/<run-id>/`` holds ``run.json`` (:class:`~bench.results.Run`), ``samples.ndjson`` (one line
per host and second), ``raw/<host>/<phase>/`` (the text that each source printed) and
``report.html``. ``results/latest`` links to the newest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from bench.errors import InputError
from bench.results import Run


def new_folder(root: Path, name: str, now: datetime) -> tuple[str, Path]:
    """A directory of its own and its name: UTC time and ``name``, so that names sort by time.

    ``20260131T120000Z-million``; a second one in one second gets a suffix.
    """
    root.mkdir(parents=True, exist_ok=True)
    base = f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{name}"
    made, number = base, 1
    while True:
        try:
            (root / made).mkdir()
            return made, root / made
        except FileExistsError:
            number += 1
            made = f"{base}-{number}"


def write_whole(target: Path, text: str) -> None:
    """Write a file so that a reader finds the old or the new one, never a part."""
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    scratch.write_text(text)
    os.replace(scratch, target)


class Store:
    """The directory that runs are kept in."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, scenario: str, now: datetime) -> tuple[str, Path]:
        """A new run's id and its directory."""
        return new_folder(self.root, scenario, now)

    def write(self, run: Run) -> Path:
        """Write ``run.json`` and point ``latest`` to the run."""
        folder = self.root / run.run_id
        target = folder / "run.json"
        write_whole(target, run.model_dump_json(by_alias=True, indent=1) + "\n")
        link = self.root / f".latest.{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(run.run_id)
        os.replace(link, self.root / "latest")
        return target

    def write_raw(self, run_id: str, host: str, phase: str, texts: dict[str, str]) -> None:
        """Keep the texts of one host and phase as they were printed."""
        folder = self.root / run_id / "raw" / host / phase
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text)

    def load(self, run_id: str) -> Run:
        """Read a run.

        :raises InputError: if there is none of that id, or its run.json is not one.
        """
        try:
            return Run.model_validate_json((self.root / run_id / "run.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"run: got {run_id!r}, expected a run in {self.root}") from None
        except ValueError as error:
            first = str(error).splitlines()[0]
            raise InputError(f"run {run_id}: run.json cannot be read: {first}") from error

    def runs(self) -> Iterator[Run]:
        """All whole runs, oldest first."""
        if not self.root.is_dir():
            return
        for folder in sorted(self.root.iterdir()):
            if not folder.is_symlink() and (folder / "run.json").is_file():
                yield self.load(folder.name)
