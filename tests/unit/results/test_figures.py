"""Charts are read back from the SVG: what is drawn, by the scale of the axes that are shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest

from bench.results import figures
from bench.results.format import CurvePoint

SVG = "{http://www.w3.org/2000/svg}"
POWERS = {"k": 1e3, "M": 1e6, "G": 1e9}


def point(t: float, held: int, **fields: Any) -> CurvePoint:
    usual = {"rate": 0.0, "p99_us": 0, "mem_available_kib": 1, "slab_kib": 1}
    return CurvePoint(t=t, held=held, **{**usual, **fields})


CURVE = [
    point(0.0, 0),
    point(1.0, 30_000, rate=30_000.0, p99_us=1_500),
    point(2.0, 50_000, rate=20_000.0, p99_us=4_000),
    point(3.0, 81_000, rate=31_000.0, p99_us=2_250),
    point(4.0, 81_000),
    point(5.0, 40_000),
]


def number(text: str) -> float:
    """A figure as an axis shows it."""
    match = re.fullmatch(r"([0-9.]+)([kMG]?)", text)
    assert match, text
    return float(match[1]) * POWERS.get(match[2], 1.0)


def places(path: str) -> list[tuple[float, float]]:
    words = re.findall(r"[ML] (\S+) (\S+)", path)
    return [(float(x), float(y)) for x, y in words]


def scale(marks: Sequence[tuple[float, float]]) -> Callable[[float], float]:
    """From a place on the page to a figure, by the first and the last mark of an axis."""
    (low, first), (high, last) = marks[0], marks[-1]
    return lambda place: first + (place - low) * (last - first) / (high - low)


class Chart:
    """One chart of an SVG: its lines and bars by colour, in the figures of its axes."""

    def __init__(self, svg: str, axes: int = 1) -> None:
        root = ElementTree.fromstring(svg)
        found = root.find(f".//{SVG}g[@id='axes_{axes}']")
        assert found is not None
        self.group = found
        self.x = scale(self._marks("xtick"))
        self.y = scale(self._marks("ytick")) if self._marks("ytick") else None

    def _marks(self, kind: str) -> list[tuple[float, float]]:
        marks = []
        for tick in self.group.iter(f"{SVG}g"):
            if not tick.get("id", "").startswith(kind):
                continue
            label = tick.find(f".//{SVG}text")
            line = tick.find(f".//{SVG}path")
            assert label is not None and label.text is not None
            if kind == "xtick":
                marks.append((float(label.get("x", "nan")), number(label.text)))
            elif line is not None:
                marks.append((places(line.get("d", ""))[0][1], number(label.text)))
        return marks

    def _paths(self, style: str) -> list[list[tuple[float, float]]]:
        return [
            places(path.get("d", ""))
            for path in self.group.iter(f"{SVG}path")
            if style in path.get("style", "") and path.get("clip-path")  # none in the legend
        ]

    def line(self, colour: str) -> list[tuple[float, float]]:
        (path,) = self._paths(f"stroke: var(--{colour}); stroke-width: 2")
        assert self.y
        return [(self.x(x), self.y(y)) for x, y in path]

    def asked(self) -> float:
        (path,) = self._paths("stroke-dasharray")
        assert self.y and path[0][1] == path[1][1]
        return self.y(path[0][1])

    def bars(self, colour: str) -> list[float]:
        return [
            self.x(max(x for x, _ in path)) - self.x(min(x for x, _ in path))
            for path in self._paths(f"fill: var(--{colour})")
        ]


def approx(values: Sequence[Any]) -> list[Any]:
    return [pytest.approx(each, rel=2e-3, abs=0.02) for each in values]


def test_connections_are_drawn_over_time_beside_what_was_asked_for() -> None:
    chart = Chart(figures.held_and_rate(CURVE, 90_000))
    assert chart.line("one") == approx([(one.t, one.held) for one in CURVE])
    assert chart.asked() == pytest.approx(90_000, rel=2e-3)


def test_the_rate_is_that_of_the_second_before() -> None:
    chart = Chart(figures.held_and_rate(CURVE, 90_000), axes=2)
    steps = [
        (before[0], after[0], after[1])
        for before, after in pairwise(chart.line("two"))
        if after[0] - before[0] > 0.1
    ]
    expected = [(before.t, after.t, after.rate) for before, after in pairwise(CURVE)]
    assert steps == approx(expected)


def test_latencies_are_drawn_in_milliseconds_where_anything_was_opened() -> None:
    chart = Chart(figures.p99(CURVE))
    assert chart.line("three") == approx([(1.0, 1.5), (2.0, 4.0), (3.0, 2.25)])


def test_memory_is_drawn_in_gib_up_to_the_peak() -> None:
    kib = 1 << 20
    curve = [
        point(0.0, 0, slab_kib=1 * kib, mem_available_kib=20 * kib),
        point(1.0, 500_000, slab_kib=3 * kib, mem_available_kib=16 * kib),
        point(2.0, 900_000, slab_kib=6 * kib, mem_available_kib=11 * kib),
        point(3.0, 400_000, slab_kib=2 * kib, mem_available_kib=18 * kib),
    ]
    chart = Chart(figures.memory(curve))
    assert chart.line("one") == approx([(0, 1), (500_000, 3), (900_000, 6)])
    assert chart.line("two") == approx([(0, 20), (500_000, 16), (900_000, 11)])


def test_the_first_of_equal_peaks_ends_what_rises() -> None:
    assert [one.t for one in figures.ramp(CURVE)] == [0.0, 1.0, 2.0, 3.0]
    assert figures.ramp([]) == []


def test_bars_are_as_long_as_caches_are_large_and_observers_stand_apart() -> None:
    svg = figures.caches({"TCP": 2_368.0, "filp": 256.0}, 100.0)
    chart = Chart(svg)
    assert chart.bars("one") == approx([2_368.0, 256.0])
    assert chart.bars("muted") == approx([100.0])
    assert [text for text in ("2,368", "256", "100") if f">{text}<" in svg] == [
        "2,368",
        "256",
        "100",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1_000, "1k"), (250_000, "250k"), (1_500_000, "1.5M"), (2e9, "2G")],
)
def test_figures_of_an_axis(value: float, text: str) -> None:
    assert figures.short(value) == text
