"""What a run has gathered, made up around the captured evidence, for diagnosis and verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runs import host, million

from bench.diagnosis.findings import Floor
from bench.results.format import Established, HostRecord, Measured, Predicted, Step

HOST = {"server": "server1", "client": "client1"}


@dataclass
class Found:
    hosts: dict[str, HostRecord] = field(default_factory=dict)
    by_side: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    stopped_by: str = "complete"
    predicted: Predicted | None = None
    steps: list[Step] = field(default_factory=list)
    floor: Floor | None = None

    @property
    def errors(self) -> dict[tuple[str, str], Mapping[str, int]]:
        return {(side, HOST[side]): counts for side, counts in self.by_side.items()}


def measured(held: int = 900_000, **changes: Any) -> Measured:
    counts = Established(clients=held, servers=held, ss=held)
    return million().measured.model_copy(update={"established": counts, **changes})


def hosts(group: str = "servers", **peak: Any) -> dict[str, HostRecord]:
    return {"server1": host(group, **peak)}
