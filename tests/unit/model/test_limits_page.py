"""docs/limits.md has every limit of the model as the model has it."""

from __future__ import annotations

from pathlib import Path

from bench.model.catalogue import CATALOGUE

PAGE = Path(__file__).resolve().parents[3] / "docs" / "limits.md"


def test_every_limit_stands_in_the_page_as_it_is() -> None:
    text = PAGE.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [
        f"| `{name}` | {entry.counts} | {entry.source} | {entry.raise_by} |"
        for name, entry in CATALOGUE.items()
    ]
