"""Charts as SVG for a page, coloured by the page's own CSS variables.

Text stays text and takes the page's font. There are no timestamps and no random ids, so the same
run always gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench.results.format import CurvePoint

# matplotlib needs colours and the page needs variables: each colour here stands for a variable,
# which replaces it in the finished SVG.
INK, LINE, ONE, TWO, THREE, MUTED = (f"#0102{n:02x}" for n in range(3, 9))
_VARIABLES = {INK: "ink", LINE: "line", ONE: "one", TWO: "two", THREE: "three", MUTED: "muted"}

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 11,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}
_WIDTH = 6.2
"""Inches. In points, this is about the width of a page column in CSS pixels, so text keeps its
size."""


def short(value: float, _position: object = None) -> str:
    """Return a number for an axis: 250k, 1.5M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"


def _svg(
    name: str, described: str, height: float, rows: int, draw: Callable[[Sequence[Axes]], None]
) -> str:
    """Return one chart. ``name`` makes its ids differ from those of other charts on the page."""
    style: Any = {**_STYLE, "svg.hashsalt": f"connlab-{name}"}
    with rc_context(style):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
        draw(axes)
        out = io.StringIO()
        figure.savefig(
            out,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # A style element in inline SVG would apply to the whole page.
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"(font(?:-family)?: ?[^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1var(--font)", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{described}"', 1)


def _axis(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_title(y, loc="left", fontsize=11, color=INK)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.margins(x=0.01)
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(short))
    axes.xaxis.set_major_formatter(FuncFormatter(short))


def held_and_rate(curve: Sequence[CurvePoint], target: int) -> str:
    """Return a chart of the connections held, the target, and connections a second, over time."""

    def draw(axes: Sequence[Axes]) -> None:
        times = [point.t for point in curve]
        held = [point.held for point in curve]
        axes[0].axhline(target, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
        axes[0].fill_between(times, held, color=ONE, alpha=0.15, linewidth=0)
        axes[0].plot(times, held, color=ONE)
        _axis(axes[0], "", "connections held (dashed: requested)")
        axes[1].fill_between(
            times, [p.rate for p in curve], step="pre", color=TWO, alpha=0.25, linewidth=0
        )
        axes[1].step(times, [point.rate for point in curve], color=TWO, where="pre")
        _axis(axes[1], "seconds", "connections a second")

    return _svg("held", "Connections held and rate over time", 4.6, 2, draw)


def p99(curve: Sequence[CurvePoint]) -> str:
    """Return a chart of the 99th percentile of the time to connect, in ms, over time.

    Seconds in which no connection was opened are left out.
    """

    def draw(axes: Sequence[Axes]) -> None:
        # 0: no connection was opened in that second.
        seen = [point for point in curve if point.p99_us]
        axes[0].plot(
            [point.t for point in seen],
            [point.p99_us / 1000 for point in seen],
            color=THREE,
            marker="o" if len(seen) < 60 else "",
            markersize=3,
        )
        _axis(axes[0], "seconds", "p99 of connect, ms")

    return _svg("p99", "99th percentile of connect latency over time", 2.6, 1, draw)


def memory(curve: Sequence[CurvePoint]) -> str:
    """Return a chart of slab and available memory in GiB against the connections held."""

    def draw(axes: Sequence[Axes]) -> None:
        rising = ramp(curve)
        held = [point.held for point in rising]
        for colour, label, values in (
            (ONE, "Slab", [point.slab_kib for point in rising]),
            (TWO, "MemAvailable", [point.mem_available_kib for point in rising]),
        ):
            axes[0].plot(held, [kib / 1048576 for kib in values], color=colour, label=label)
        _axis(axes[0], "connections held", "memory, GiB")
        axes[0].legend(loc="best", labelcolor=INK)

    return _svg("memory", "Slab and available memory against connections held", 3.2, 1, draw)


def ramp(curve: Sequence[CurvePoint]) -> list[CurvePoint]:
    """Return the points up to the peak; later points only hold and close connections."""
    if not curve:
        return []
    top = max(range(len(curve)), key=lambda index: curve[index].held)
    return list(curve[: top + 1])


def caches(by_cache: Mapping[str, float], observers: float) -> str:
    """Return a chart of bytes per connection by slab cache, with observers in another colour."""
    rows = [(name.replace("+", " +\n"), size, ONE) for name, size in by_cache.items()]
    if observers:
        rows.append(("observers (not counted)", observers, MUTED))
    # The height of a row depends on the number of lines in its name.
    places: list[float] = []
    depth = 0.0
    for name, _, _ in rows:
        high = 1 + 0.75 * name.count("\n")
        places.append(depth + high / 2)
        depth += high

    def draw(axes: Sequence[Axes]) -> None:
        chart = axes[0]
        sizes = [size for _, size, _ in rows]
        bars = chart.barh(places, sizes, color=[c for _, _, c in rows], height=0.66)
        chart.bar_label(bars, labels=[f"{size:,.0f}" for size in sizes], padding=4, color=INK)
        chart.set_yticks(places, [name for name, _, _ in rows], linespacing=1.0)
        chart.set_ylim(depth, 0)
        chart.set_xlabel("bytes per connection")
        chart.margins(x=0.14)
        chart.grid(axis="y", visible=False)
        chart.xaxis.set_major_locator(MaxNLocator(4))
        chart.xaxis.set_major_formatter(FuncFormatter(short))

    return _svg("caches", "Kernel bytes per connection by slab cache", 0.7 + 0.27 * depth, 1, draw)
