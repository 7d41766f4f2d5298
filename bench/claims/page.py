"""``docs/claims.md``: each claim, its measurement, the reason and the cure, from records alone.

Its records are kept beside it. So it can be written again from them, and a test checks that both
agree.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bench.claims.model import Claim
from bench.claims.record import Figure, Record
from bench.units import count

UNMEASURED = ("not measurable here", "failed", "inconclusive")

LINE = "<br>"
"""Line break within a cell of a Markdown table."""


def render(claims: Sequence[Claim[Any, Any]], records: Iterable[Record]) -> str:
    """Return the page.

    For each claim it has the newest full record with a verdict, or the newest small record if there
    is none.
    """
    known = list(records)
    chosen = choose(known)
    env = Environment(
        loader=PackageLoader("bench.results", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    env.filters["tables"] = tables
    env.filters["kernels"] = kernels
    return env.get_template("claims.md.j2").render(
        rows=[(claim, chosen.get(claim.id), elsewhere(claim.id, known, chosen)) for claim in claims]
    )


def told(claims: Sequence[Claim[Any, Any]], records: Iterable[Record]) -> list[Record]:
    """Return the records that the page uses, in its order."""
    known = list(records)
    chosen = choose(known)
    found = []
    for claim in claims:
        if claim.id in chosen:
            found += [chosen[claim.id], *elsewhere(claim.id, known, chosen)]
    return found


def choose(records: Iterable[Record]) -> dict[str, Record]:
    """Return the record to use, by claim.

    A record with a verdict comes before one without, then a full record before a small one, then
    the newest.
    """

    def rank(one: Record) -> tuple[bool, bool, str]:
        return one.verdict not in UNMEASURED, one.profile == "full", one.id

    best: dict[str, Record] = {}
    for one in records:
        if one.claim not in best or rank(one) > rank(best[one.claim]):
            best[one.claim] = one
    return best


def elsewhere(claim: str, records: Iterable[Record], chosen: Mapping[str, Record]) -> list[Record]:
    """Return a claim's records with a verdict on other kernels: the best record of each kernel."""
    by_kernel: dict[str, list[Record]] = {}
    for one in records:
        if one.claim == claim and one.verdict not in UNMEASURED:
            by_kernel.setdefault(kernels(one), []).append(one)
    if claim in chosen:
        by_kernel.pop(kernels(chosen[claim]), None)
    return [choose(group)[claim] for _, group in sorted(by_kernel.items())]


def kernels(one: Record) -> str:
    """Return the kernel releases of a record's hosts."""
    return ", ".join(sorted(set(one.kernels.values())))


def tables(figures: Sequence[Figure]) -> list[tuple[str, list[list[str]]]]:
    """Return figures as tables with heading rows; single values share an untitled table."""
    single, several = [["figure", "value"]], []
    for one in figures:
        cells, title = grid(one.value), one.description or one.name
        if cells:
            several.append((title, cells))
        else:
            single.append([title, figure(one.value)])
    return [*([("", single)] if single[1:] else []), *several]


def grid(value: Any) -> list[list[str]]:
    """Return a figure that is a table in itself, with its heading row; otherwise nothing.

    Such a figure is a list of mappings, a row each, or a mapping of mappings, whose keys come
    first.
    """
    if isinstance(value, dict) and _mappings(value.values()):
        rows = [{"": key, **fields} for key, fields in value.items()]
    elif isinstance(value, list) and _mappings(value):
        rows = value
    else:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [
        [_title(name) for name in names],
        *([figure(row.get(name)) for name in names] for row in rows),
    ]


def _mappings(values: Collection[Any]) -> bool:
    return bool(values) and all(isinstance(one, dict) for one in values)


def figure(value: Any) -> str:
    """Return a figure for a reader, in one cell of a table; its parts are on lines of their own."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list):
        return (LINE if _mappings(value) else ", ").join(map(figure, value)) or "-"
    if isinstance(value, dict):
        lines = any(_mappings(one) for one in value.values() if isinstance(one, list))
        return (LINE if lines else "; ").join(map(_named, value.items())) or "-"
    return str(value)


def _named(item: tuple[str, Any]) -> str:
    name, value = item
    lines = isinstance(value, list) and _mappings(value)
    return f"{name}:{LINE if lines else ' '}{figure(value)}"


def _title(name: str) -> str:
    """Return a field's name in words; a name with capitals is an external name: SO_REUSEADDR."""
    return name.replace("_", " ") if name.islower() else name
