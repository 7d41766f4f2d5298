"""The records of claims, as data.

``results/<id>/`` holds ``claim.json`` (:class:`Record`) and ``runs/``, the runs of the measurement.
``results/claims.json`` and ``results/claims.md`` are the table of the newest batch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bench import files
from bench.claims.model import Outcome, Profile
from bench.errors import InputError
from bench.results.store import check, folders, new_folder, writing

FILE = "claim.json"


class Figure(BaseModel):
    """One measured figure."""

    model_config = ConfigDict(extra="forbid")

    name: str
    value: Any
    description: str = Field(description="what it is, with its unit")


class Record(BaseModel):
    """One claim, measured once."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_: Literal[1] = Field(1, alias="schema")
    id: str = Field(description="UTC time, claim- and the claim's name: the directory's name")
    claim: str
    said: str
    profile: Profile
    verdict: Outcome | Literal["failed"] = Field(
        description="failed: the lab broke, reason says how"
    )
    measured: str = Field(description="the figures, in a line")
    reason: str
    cure: str
    read: str
    substrate: str
    kernels: dict[str, str] = Field(description="host to kernel release")
    started: datetime
    finished: datetime
    parameters: dict[str, Any]
    figures: list[Figure] = Field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Duration of the measurement."""
        return (self.finished - self.started).total_seconds()


class Kept:
    """Records without their runs: those that a page uses, a file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> list[Record]:
        """Return every record, oldest first. :raises InputError: if one cannot be read."""
        return [_read(path) for path in sorted(self.folder.glob("*.json"))]

    def keep(self, records: Iterable[Record]) -> None:
        """Keep these records and no others."""
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = {f"{one.id}.json": one for one in records}
        for path in self.folder.glob("*.json"):
            if path.name not in wanted:
                path.unlink()
        for name, one in wanted.items():
            files.write_inside(self.folder, (), {name: _text(one)})


class Records:
    """The directory of the claims' records, which is that of the runs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def check(self) -> None:
        """Check that records can be kept. :raises InputError: naming the directory."""
        check(self.root)

    def create(self, claim: str, now: datetime) -> tuple[str, Path]:
        """Create a directory for a new record; return the record's id and the directory."""
        return new_folder(self.root, f"claim-{claim}", now)

    def write(self, record: Record) -> Path:
        """Write a record into the directory that was created for it.

        :raises LabError: if it cannot be written
        """
        target = self.root / record.id / FILE
        with writing(target):
            files.write_inside(self.root, (record.id,), {FILE: _text(record)})
        return target

    def batch(self, records: Iterable[Record], table: str) -> None:
        """Write the table of a batch, as data and as text.

        :raises LabError: if it cannot be written
        """
        kept = [json.loads(one.model_dump_json(by_alias=True)) for one in records]
        texts = {"claims.json": json.dumps(kept, indent=1) + "\n", "claims.md": table}
        with writing(self.root / "claims.json"):
            files.write_inside(self.root, (), texts)

    def all(self, unreadable: Callable[[str], None] = lambda line: None) -> Iterator[Record]:
        """Yield every record, oldest first.

        :param unreadable: called with a line for each record that cannot be read; it is skipped
        """
        for folder in sorted(folders(self.root)):
            try:
                if os.path.lexists(folder / FILE):
                    yield _read(folder / FILE)
            except InputError as error:
                unreadable(str(error))


def _read(path: Path) -> Record:
    try:
        return Record.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"claim record {path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise InputError(f"claim record {path}: cannot be read: {first}") from error


def _text(record: Record) -> str:
    return record.model_dump_json(by_alias=True, indent=1) + "\n"
