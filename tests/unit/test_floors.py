"""The rows of docs/architecture.md: a module imports only from rows below its own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def rows() -> list[list[str]]:
    """Rooms and modules of ``bench``, row by row from the top."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.split("| row | rooms |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
    return [re.findall(r"`([a-z]+)/?`", row) for row in table]


def imports(path: Path) -> set[str]:
    """Modules and packages of ``bench`` that a file imports, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bench":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


def test_every_room_has_a_row_and_imports_from_below() -> None:
    table = rows()
    place = {name: (number, 0) for number, row in enumerate(table[:-1]) for name in row}
    place |= {name: (len(table), number) for number, name in enumerate(table[-1])}
    for path in sorted((ROOT / "bench").rglob("*.py")):
        own = path.relative_to(ROOT / "bench").parts[0].removesuffix(".py")
        if own.startswith("__"):
            continue
        assert own in place, f"{own} is in no row"
        for other in imports(path) - {own}:
            assert place[other] > place[own], f"{path.name} imports {other}, which is not below it"


def test_every_room_says_what_it_is_for() -> None:
    for path in sorted((ROOT / "bench").glob("*/__init__.py")):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_the_agent_never_imports_the_controller() -> None:
    for path in (ROOT / "bench" / "agent").glob("*.py"):
        assert imports(path) <= {"agent", "wire"}, path.name
