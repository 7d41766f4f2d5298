"""Each role's README has the variables of the role as they are, and an example that could run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tune_loader import ROLES, load

NAMES = sorted(path.parents[1].name for path in ROLES.glob("*/meta/argument_specs.yml"))
BEGIN, END = "<!-- variables -->\n", "<!-- /variables -->\n"

LONGEST = 60
"""Characters of a default that the table shows; a longer one is left to defaults/main.yml."""


def options(role: str) -> dict[str, dict[str, Any]]:
    """Every option of a role, whichever of its entry points takes it."""
    text = (ROLES / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = {}
    for point in yaml.safe_load(text)["argument_specs"].values():
        for name, option in point["options"].items():
            assert found.setdefault(name, option) == option, f"{name} differs by entry point"
    return found


def defaults(role: str) -> dict[str, Any]:
    path = ROLES / role / "defaults" / "main.yml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def shown(value: object) -> str:
    """A default as the table shows it: text as it stands in YAML, the rest as JSON."""
    return value if isinstance(value, str) and value else json.dumps(value)


def default_cell(option: dict[str, Any], value: object) -> str:
    """The default that a role has; of a long one what its specs say of it in words."""
    if len(shown(value)) <= LONGEST:
        return f"`{shown(value)}`"
    words = option.get("default")
    return words if isinstance(words, str) else "see [defaults/main.yml](defaults/main.yml)"


def expected_table(role: str) -> str:
    """The table of a role's variables, from its specs and its defaults."""
    known, values = options(role), defaults(role)
    if not known:
        return "The role has no variables.\n"
    rows = ["| variable | type | default | meaning |", "|---|---|---|---|"]
    for name, option in known.items():
        kind = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
        choices = ", ".join(f"`{choice}`" for choice in option.get("choices", []))
        meaning = option["description"] + (f" One of {choices}." if choices else "")
        cells = (f"`{name}`", kind, default_cell(option, values[name]), meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def readme(role: str) -> str:
    return (ROLES / role / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("role", NAMES)
def test_the_readme_has_every_variable_as_it_is(role: str) -> None:
    text, wanted = readme(role), expected_table(role)
    assert text.count(BEGIN) == text.count(END) == 1, f"{role}: no {BEGIN.strip()}; put\n{wanted}"
    found = text.partition(BEGIN)[2].partition(END)[0].strip("\n") + "\n"
    assert found == wanted, f"roles/{role}/README.md: between the markers belongs\n{wanted}"


@pytest.mark.parametrize("role", NAMES)
def test_specs_and_defaults_agree(role: str) -> None:
    known, values = options(role), defaults(role)
    assert set(known) == set(values)
    differing = {
        name: (option["default"], values[name])
        for name, option in known.items()
        if option.get("default", values[name]) != values[name]
        and len(shown(values[name])) <= LONGEST
    }
    assert differing == {}


def used(node: object) -> Iterator[tuple[str, str, set[str]]]:
    """Roles that plays use: name, file of tasks and names of the variables given with it."""
    if isinstance(node, list):
        for item in node:
            yield from used(item)
    elif isinstance(node, dict):
        for item in node.get("roles", []):
            entry = item if isinstance(item, dict) else {"role": item}
            yield entry["role"], "main", {*entry, *entry.get("vars", {})}
        for key, item in node.items():
            if key.rpartition(".")[2] in ("import_role", "include_role"):
                yield item["name"], item.get("tasks_from", "main"), set(node.get("vars", {}))
            elif key in ("tasks", "pre_tasks", "post_tasks", "block"):
                yield from used(item)


def plays(text: str) -> list[Any]:
    """The playbooks among the examples: those in YAML that are lists."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", text, re.M | re.S)
    return [found for found in map(yaml.safe_load, blocks) if isinstance(found, list)]


@pytest.mark.parametrize("role", NAMES)
def test_the_example_uses_the_role_as_it_is(role: str) -> None:
    books = plays(readme(role))
    found = [each for book in books for each in used(book)]
    assert role in {name for name, _, _ in found}, f"{role}: no example"
    known = {name for each in NAMES for name in options(each)}
    for name, tasks, given in found:
        assert (ROLES / name / "tasks" / f"{tasks}.yml").is_file(), f"{name}: no tasks {tasks}"
        assert {each for each in given if each.startswith(f"{name}_")} <= options(name).keys()
    variables = {key for book in books for play in book for key in play.get("vars", {})}
    prefixes = tuple(f"{each}_" for each in NAMES)
    assert {key for key in variables if key.startswith(prefixes)} <= known


def test_tune_sysctls_readme_has_every_key_that_the_role_computes_and_no_other() -> None:
    keys = load("tune_sysctl", "filter_plugins", "tune_sysctl").KEYS
    table = readme("tune_sysctl").partition("| key | value |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(.+?)` \|", table, re.M) == list(keys)
