"""The report of a run as one self-contained page: ``report.html``."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.results import classic, words
from bench.results.cost import disturbed
from bench.results.format import HostRecord, Predicted, Run, Setting
from bench.units import count, latency, pair, plural, printable, short, size

_TEMPLATES = Path(__file__).parent / "templates"


def render(run: Run) -> str:
    """Return ``report.html`` of a run, from the run alone, without scripts or external files."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {
        "count": count,
        "size": size,
        "kib": lambda kib: size(kib * 1024),
        "latency": latency,
        "pair": pair,
        "plural": plural,
        "short": short,
        "words": lambda text: " ".join(str(text).split()),
    }
    page: str = environment.get_template("report.html.j2").render(
        run=run,
        m=run.measured,
        reached=words.reached(run),
        title=run.config.get("title", run.scenario),
        charts=_charts(run),
        churned=words.churned,
        agents_memory=words.agents_memory,
        cost=words.cost(run),
        disturbed=disturbed(run.measured.kernel_bytes_per_connection),
        predicted=words.predicted(run),
        limits=_limits(run.predicted),
        forecast=_found_of_forecast(run),
        classic=classic.compare(run),
        article=classic.ARTICLE,
        tuning=list(_tuning(run.hosts)),
        reported=[(host, *item) for host, r in run.hosts.items() for item in r.reported.items()],
        missing=[
            (host, phase, source, why)
            for host, record in run.hosts.items()
            for phase, evidence in record.phases.items()
            for source, why in evidence.missing.items()
        ],
        errors=[(name, number, _meaning(name)) for name, number in run.measured.errors.items()],
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
        image=yaml.safe_dump(run.image, sort_keys=False) if run.image else "",
    )
    return page


def _shown(value: Any) -> Any:
    """Return a value for the page: text from hosts is made printable; Jinja then escapes it."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return printable(value, lines=True)


def _limits(made: Predicted) -> list[tuple[str, str, int]]:
    """Return (limit, host or end, maximum), the lowest first."""
    if not made.bounds:  # a run from before bounds were kept
        return [(name, "", most) for name, most in made.limits.items()]
    return [(one.name, words.whose(one), one.max_connections) for one in made.bounds]


def _found_of_forecast(run: Run) -> str:
    """Return the forecast and the measured value in one sentence; empty if one is missing."""
    one = run.predicted.forecast
    peak = run.hosts[one.host].phases.get("peak") if one and one.host in run.hosts else None
    if one is None or peak is None or "MemFree" not in peak.meminfo_kib:
        return ""
    return (
        f"MemFree on {one.host}: {size(one.mem_free_expected_kib * 1024)} expected with "
        f"{plural(one.connections, 'connection')}, "
        f"{size(peak.meminfo_kib['MemFree'] * 1024)} measured with {count(peak.held)}."
    )


def _charts(run: Run) -> dict[str, Markup]:
    """Return the charts that the evidence allows; a curve needs two points."""
    from bench.results import figures

    made: dict[str, str] = {}
    if len(run.curve) > 1:
        made["held"] = figures.held_and_rate(run.curve, run.requested.connections)
        if sum(point.p99_us > 0 for point in run.curve) > 1:
            made["p99"] = figures.p99(run.curve)
        rising = figures.ramp(run.curve)
        if len(rising) > 1 and rising[-1].held > rising[0].held and any(p.slab_kib for p in rising):
            made["memory"] = figures.memory(run.curve)
    kernel = run.measured.kernel_bytes_per_connection
    if kernel.by_cache:
        # The kernel's own names are ASCII; the chart's font does not have every other glyph.
        caches = {
            printable(name).encode("ascii", "backslashreplace").decode(): each
            for name, each in kernel.by_cache.items()
        }
        made["caches"] = figures.caches(caches, kernel.observer_bytes)
    # The charts are drawn from numbers and kernel names; matplotlib escapes its text.
    return {name: Markup(svg) for name, svg in made.items()}


Rows = list[tuple[str, str, Setting]]


def _tuning(hosts: Mapping[str, HostRecord]) -> Iterable[tuple[str, Rows]]:
    """Yield (hosts, [(role, key, setting)]), hosts with the same tuning together."""
    alike: dict[str, tuple[list[str], Rows]] = {}
    for name, host in hosts.items():
        rows = [
            (role, key, setting)
            for role, settings in host.tuning.items()
            for key, setting in settings.items()
        ]
        if rows:
            alike.setdefault(repr(rows), ([], rows))[0].append(name)
    for names, rows in alike.values():
        yield ", ".join(names), rows


def _meaning(name: str) -> str:
    """Return the meaning of an errno's name, as in strerror(3)."""
    number: Any = getattr(errno, name, None)
    return os.strerror(number) if isinstance(number, int) else ""
