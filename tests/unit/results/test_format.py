from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench.collect import kernellog
from bench.diagnosis import errnos
from bench.errors import InputError
from bench.model.catalogue import CATALOGUE
from bench.results.format import json_schema
from bench.results.store import Store


def test_published_schema_is_current() -> None:
    """Regenerate: python -c 'from bench.results.format import *; print(json_schema(), end="")'."""
    published = Path(__file__).parents[3] / "docs" / "run.schema.json"
    assert published.read_text() == json_schema()


def test_every_field_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "results.md").read_text()
    schema = json.loads(json_schema())
    parts = [schema, *schema["$defs"].values()]
    fields = {name for part in parts for name in part.get("properties", {})}
    assert {name for name in fields if not re.search(rf"\b{name}\b", text)} == set()


def test_every_diagnosis_is_documented() -> None:
    root = Path(__file__).parents[3]
    text = (root / "docs" / "results.md").read_text().partition("## bound_by")[2]
    source = "".join(path.read_text() for path in (root / "bench" / "diagnosis").glob("*.py"))
    named = set(re.findall(r'Finding\(\s*VAGUE,\s*"([\w.]+)"', source))
    named |= {bound for bound, _, _ in errnos.OTHERS.values()} | set(kernellog.TELLING)
    named |= set(CATALOGUE) | {"backlog", "tcp_max_syn_backlog", "tcp_mem", "none"}
    assert len(named) > 22
    assert {name for name in named if f"`{name}`" not in text} == set()


def test_a_run_that_is_not_there_or_not_readable(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(InputError, match="run: got 'nothing', expected a run in"):
        store.load("nothing")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"run broken: run\.json cannot be read"):
        store.load("broken")
