"""What a run says to a person: one self-contained page, and a few lines on a terminal."""

from __future__ import annotations

import errno
import os
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.collect.cost import disturbed
from bench.results import HostRecord, Phase, Predicted, Run, Setting

COLUMNS = 100
"""Longest line of the summary."""

COMPARED_FROM = 900_000
"""Connections from which a run is set beside the classic experiment."""

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Side:
    """One side of the comparison with the classic experiment. Sizes in KiB, as meminfo gives."""

    kernel: str
    established: int
    meminfo_kib: Mapping[str, int]

    @property
    def slab_each(self) -> float | None:
        """All slab of the machine per connection, in bytes."""
        slab = self.meminfo_kib.get("Slab")
        return None if slab is None else slab * 1024 / self.established


ARTICLE = Side("3.10", 1_000_024, {"Slab": 3_241_244, "MemFree": 96_652, "MemAvailable": 6_448})
"""The classic experiment: a CentOS host with 3.9 GB of memory, as the article about it prints
``ss`` and ``/proc/meminfo`` at the peak. Its slab is not known by cache."""


def render(run: Run) -> str:
    """``report.html`` of a run, from the run alone: no script, nothing fetched."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count,
        "size": size,
        "kib": lambda kib: size(kib * 1024),
        "latency": latency,
        "pair": pair,
        "words": lambda text: " ".join(str(text).split()),
    }
    page: str = environment.get_template("report.html.j2").render(
        run=run,
        m=run.measured,
        reached=reached(run),
        title=run.config.get("title", run.scenario),
        charts=_charts(run),
        cost=cost(run),
        disturbed=disturbed(run.measured.kernel_bytes_per_connection),
        predicted=predicted(run),
        forecast=_found_of_forecast(run),
        classic=classic(run),
        article=ARTICLE,
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


def summary(run: Run, folder: Path | None = None) -> list[str]:
    """What was reached, how fast, at what cost, what bound it, where the report is.

    :param folder: the run's directory; by default ``results/<run-id>``
    :return: lines of at most :data:`COLUMNS` columns; their number grows only with the reason's
    """
    m, counts = run.measured, run.measured.established
    lines = _wrap(f"{run.verdict.upper()}: {run.reason}")
    if counts.clients or counts.servers:
        lines += _wrap(
            f"held {count(counts.clients)} of {count(run.requested.connections)} (clients "
            f"{count(counts.clients)}, servers {count(counts.servers)}, ss {count(counts.ss)}), "
            f"lost {count(m.lost)}"
        )
        late = m.connect_latency_us
        lines += _wrap(
            f"opened in {m.ramp_seconds:,.1f} s, {m.connections_per_second:,.0f} connections a "
            f"second, connect p50 {latency(late.p50)}, p99 {latency(late.p99)}"
        )
        lines += _wrap(f"cost per connection: {cost(run)['line']}")
        lines += _wrap(f"bound by: {run.bound_by}; {predicted(run)}")
    elif reached(run):
        lines += _wrap(
            f"got as far as {count(reached(run))} of {count(run.requested.connections)} "
            "connections, as the clients told while it ran; nothing was counted"
        )
    lines.append(f"report: {folder or Path('results') / run.run_id}/report.html")
    return lines


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, COLUMNS, subsequent_indent="  ")


def count(number: int) -> str:
    """A count with thousands separated."""
    return f"{number:,}"


def size(number: float | None) -> str:
    """Bytes for a reader: B below 1 KiB, then KiB, MiB, GiB."""
    if number is None:
        return "not measured"
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if abs(number) >= unit:
            return f"{number / unit:,.2f} {name}"
    return f"{number:,.0f} B"


def latency(microseconds: int) -> str:
    """A latency for a reader: µs below 1 ms, then ms, then s."""
    if microseconds < 1_000:
        return f"{microseconds} µs"
    if microseconds < 1_000_000:
        return f"{microseconds / 1_000:.3g} ms"
    return f"{microseconds / 1_000_000:.3g} s"


def reached(run: Run) -> int:
    """Connections held at the most: as counted, else as the clients told while the run went on."""
    return run.measured.established.clients or max((p.held for p in run.curve), default=0)


def pair(one: str, two: str) -> Markup:
    """Two figures as one; a unit that both have is written once."""
    first, unit = one.rpartition(" ")[::2]
    shown = first if unit == two.rpartition(" ")[2] and first else one
    return Markup("<span>{}</span> <small>/</small> <span>{}</span>").format(shown, two)


def cost(run: Run) -> dict[str, str]:
    """What a connection costs, in words: ``kernel``, ``ends`` (whose), ``userland``, ``line``."""
    kernel, user = (
        run.measured.kernel_bytes_per_connection,
        run.measured.userland_bytes_per_connection,
    )
    if kernel.both_ends is not None:
        found, ends = size(kernel.both_ends), "both ends, on one kernel"
        line = f"kernel {found} for both ends, on one kernel"
    elif kernel.server is None and kernel.client is None:
        found, ends = "not measured", "no phases to compare"
        line = "kernel not measured"
    else:
        found, ends = size(kernel.server), f"server; client {size(kernel.client)}"
        line = f"kernel server {found}, client {size(kernel.client)}"
    if disturbed(kernel):
        ends += "; with sockets of others"
        line += " (with sockets of others)"
    userland = f"server {size(user.server)}, client {size(user.client)}"
    if user.server is None and user.client is None:
        userland = "not measured"
    return {
        "kernel": found,
        "ends": ends,
        "userland": userland,
        "line": f"{line}; agents {userland}",
    }


def predicted(run: Run) -> str:
    """The prediction, in words."""
    if not run.predicted.limits and not run.predicted.max_connections:
        return "nothing was predicted"
    most = count(run.predicted.max_connections)
    return f"the model expected at most {most} ({run.predicted.bound_by})"


def forecast(made: Predicted, floor_mib: int) -> str:
    """What will be left of the servers' memory, in one line; empty if nothing was forecast.

    :param floor_mib: the memory that the run leaves, MiB
    """
    one = made.forecast
    if one is None:
        return ""
    left = one.mem_free_expected_kib
    slab, rest = (
        f"{kib * 1024 / one.connections:,.0f} B"
        for kib in (one.slab_kib, one.descriptors_kib + one.agents_kib)
    )
    taken = one.mem_free_kib - left
    end = (
        f"which leaves {size(left * 1024)} free"
        if left >= 0
        else f"{size(-left * 1024)} more than is free"
    )
    memory = made.limits.get("memory")
    most = "" if memory is None else f"; {count(memory)} fit above the floor of {floor_mib:,} MiB"
    return (
        f"{one.host} has MemFree {size(one.mem_free_kib * 1024)}, "
        f"MemAvailable {size(one.mem_available_kib * 1024)}; {count(one.connections)} connections "
        f"x ({slab} slab + {rest} tables and agents) = {size(taken * 1024)}, {end}{most}"
    )


def _found_of_forecast(run: Run) -> str:
    """What was forecast beside what was found, in one sentence; empty if one of them is missing."""
    one = run.predicted.forecast
    peak = run.hosts[one.host].phases.get("peak") if one and one.host in run.hosts else None
    if one is None or peak is None or "MemFree" not in peak.meminfo_kib:
        return ""
    return (
        f"MemFree on {one.host}: {size(one.mem_free_expected_kib * 1024)} expected with "
        f"{count(one.connections)} connections, {size(peak.meminfo_kib['MemFree'] * 1024)} found "
        f"with {count(peak.held)}."
    )


@dataclass(frozen=True)
class Classic:
    """A run set beside the classic experiment."""

    run: Side
    mem_total_kib: int
    grown: float | None
    """Slab growth per connection, in bytes."""
    why: list[str]


def classic(run: Run) -> Classic | None:
    """The run beside :data:`ARTICLE`, if it is of that kind.

    That is: one server in a virtual machine of its own, and :data:`COMPARED_FROM` connections
    by all three counts.
    """
    servers = [host for host in run.hosts.values() if "servers" in host.groups]
    peak = servers[0].phases.get("peak") if len(servers) == 1 else None
    counts = run.measured.established
    held = min(counts.clients, counts.servers, counts.ss)
    if run.substrate != "vm" or peak is None or held < COMPARED_FROM:
        return None
    side = Side(servers[0].kernel, counts.ss, peak.meminfo_kib)
    kernel = run.measured.kernel_bytes_per_connection
    return Classic(
        run=side,
        mem_total_kib=servers[0].mem_total_kib,
        grown=kernel.server,
        why=[*_why_more(kernel.server, kernel.by_cache), *_why_available(peak, kernel.by_cache)],
    )


def _why_more(grown: float | None, by_cache: Mapping[str, float]) -> list[str]:
    """Why a connection takes more slab than in the article, as far as the figures tell."""
    then = ARTICLE.slab_each
    tcp = sum(by_cache.get(name, 0.0) for name in ("TCP", "TCPv6"))
    if grown is None or then is None or not tcp or grown <= then:
        return []
    blobs = sum(each for name, each in by_cache.items() if name.startswith("lsm_"))
    rest = blobs + sum(by_cache.get(name, 0.0) for name in ("sock_inode_cache", "dentry", "filp"))
    parts = [
        f"{name} {size(each)}"
        for name, each in by_cache.items()
        if each >= 0.01 * grown and not name.startswith("lsm_")
    ]
    if blobs > 0:
        parts.append(f"security modules' blobs (lsm_*) {size(blobs)}")
    return [
        f"A connection takes {size(grown)} of this kernel: {', '.join(parts)}.",
        "The article's slab is not known by cache. Had inode, dentry, file and blobs been as "
        f"large then as they are now, its {size(then)} would leave the socket itself at most "
        f"{size(then - rest)}; here it takes {size(tcp)} (cache TCP) and so is the likeliest to "
        "have grown.",
    ]


def _why_available(peak: Phase, by_cache: Mapping[str, float]) -> list[str]:
    """Why MemAvailable cannot be compared, where sockets' inodes are counted into it."""
    pinned = sum(by_cache.get(name, 0.0) for name in ("sock_inode_cache", "dentry")) * peak.held
    available = peak.meminfo_kib.get("MemAvailable", 0) * 1024
    if not 0 < pinned <= available:
        return []
    return [
        f"Of this kernel's MemAvailable, {size(pinned)} are the live sockets' own inodes and "
        "dentries, which no reclaim gives back: MemFree is the figure to compare."
    ]


def _charts(run: Run) -> dict[str, Markup]:
    """The charts that the evidence allows; a curve takes two points."""
    from bench import figures

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
        made["caches"] = figures.caches(kernel.by_cache, kernel.observer_bytes)
    # Drawn here from numbers and kernel names; matplotlib escapes its text.
    return {name: Markup(svg) for name, svg in made.items()}


Rows = list[tuple[str, str, Setting]]


def _tuning(hosts: Mapping[str, HostRecord]) -> Iterable[tuple[str, Rows]]:
    """(hosts, [(role, key, setting)]), hosts with the same tuning together."""
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
    """What an errno's name means, as strerror(3) says it."""
    number: Any = getattr(errno, name, None)
    return os.strerror(number) if isinstance(number, int) else ""
