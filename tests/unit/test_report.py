from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from runs import aborted, curve, million, stopped

from bench import figures, report
from bench.results import KernelBytes, Run, Setting

ALL = (million, stopped, aborted)


@cache
def page_of(made: Callable[[], Run]) -> str:
    return report.render(made())


VOID = {"meta", "link", "br", "hr", "img"}


class Page(HTMLParser):
    """Checks nesting; keeps the text and every attribute that could fetch something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "data", "action", "srcset")
            and not (value or "").startswith("#")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(word for word in self.words if word)


@pytest.mark.parametrize("made", ALL)
def test_page_is_whole_and_fetches_nothing(made) -> None:
    html = page_of(made)
    page = Page(html)
    assert page.fetched == []
    assert not page.tags & {"script", "iframe", "link", "img", "object"}
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", html)
    assert "var(--one)" in html and "prefers-color-scheme: dark" in html


@pytest.mark.parametrize("made", ALL)
def test_one_run_gives_the_same_page(made) -> None:
    assert report.render(made()) == page_of(made)


@pytest.mark.parametrize("made", ALL)
def test_page_comes_from_run_json_alone(made) -> None:
    run = made()
    again = Run.model_validate_json(run.model_dump_json(by_alias=True))
    assert report.render(again) == page_of(made)


def test_ids_of_charts_do_not_clash() -> None:
    html = page_of(million)
    charts = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(charts) == 4
    clips = [set(re.findall(r'clipPath id="([^"]+)"', chart)) for chart in charts]
    assert sum(map(len, clips)) == len(set().union(*clips))
    for chart in charts:
        ElementTree.fromstring(chart)
        assert not re.search(r"#0102[0-9a-f]{2}", chart)
        assert "DejaVu" not in chart


def test_figures_of_a_whole_run() -> None:
    text = Page(page_of(million)).text
    for said in (
        "pass 1,000,000 connections held",
        "44,623",
        "1.53 / 3.07 ms",
        "both ends, on one kernel",
        "51 + 52",
        "All three agree.",
        "32768 60999 1024 65535",
        "tune_sysctl, on the underlay",
        "server1, client1, client2",
        "ETIMEDOUT 12 Connection timed out",
        "paramiko 3.5.1",
        "connections: 1000000",
        "systemd: 252.39-1~deb12u1",
        "observers (not counted)",
        "97 %",
    ):
        assert said in text, said


def test_figures_of_a_run_that_a_limit_stopped() -> None:
    text = Page(page_of(stopped)).text
    assert "They disagree by up to 3." in text
    assert "kept the run from its target" in text
    assert "server; client" in text
    assert "998 of 1,000" in text


def test_a_run_that_ended_early_says_so_instead_of_showing_zeros() -> None:
    text = Page(page_of(aborted)).text
    for said in (
        "worker 3 (pid 812) died",
        "anything to draw",
        "not measured",
        "none was started",
        "Nothing was counted.",
        "No error was counted.",
        "No role had left a record",
        "ended before the hosts had told their limits",
    ):
        assert said in text, said


def test_a_ramp_that_was_cut_off_shows_how_far_it_got() -> None:
    run = aborted()
    run.curve = curve(1_000_000, 26, 0)[:14]
    held = f"{run.curve[-1].held:,}"
    text = Page(report.render(run)).text
    assert f"Held {held} of 1,000,000, as the clients told; not counted" in text
    assert "the ramp did not end" in text
    assert any(f"got as far as {held} of" in line for line in report.summary(run))


@pytest.mark.parametrize("points", [0, 1, 2, 3])
def test_few_points_are_no_trouble(points: int) -> None:
    run = million()
    run.curve = curve(10, 1, 2)[:points]
    html = report.render(run)
    assert ("requested)" in html) == (points > 1)
    Page(html)


def test_nothing_that_a_host_says_is_markup() -> None:
    run = million()
    nasty = '<script>alert("$x$")</script>'
    run.reason = run.hosts["server1"].kernel = nasty
    run.hosts["server1"].tuning = {nasty: {nasty: Setting(found=nasty, set=nasty)}}
    run.hosts["server1"].phases["peak"].missing = {nasty: nasty}
    run.measured.errors = {nasty: 1}
    run.measured.kernel_bytes_per_connection.by_cache = {nasty: 100.0}
    run.config = {"title": nasty}
    page = Page(report.render(run))
    assert "script" not in page.tags
    assert page.text.count('alert("$x$")') >= 8


def test_missing_evidence_is_listed() -> None:
    run = million()
    run.hosts["server1"].phases["peak"].missing = {"slabinfo": "Permission denied"}
    assert "server1 peak slabinfo : Permission denied" in Page(report.render(run)).text


@pytest.mark.parametrize("made", ALL)
def test_summary_is_short_and_fits(made) -> None:
    lines = report.summary(made())
    assert all(len(line) <= report.COLUMNS for line in lines)
    assert len(lines) <= 7
    assert not any("others" in line for line in lines)
    assert lines[0].startswith(made().verdict.upper())
    assert lines[-1] == f"report: results/{made().run_id}/report.html"


def test_summary_of_a_whole_run(tmp_path) -> None:
    text = "\n".join(report.summary(million(), tmp_path))
    assert "held 1,000,000 of 1,000,000" in text
    assert "44,623 connections a second" in text
    assert "kernel 7.9" in text
    assert "bound by: none; the model expected at most 1,032,192 (tuples)" in text
    assert f"report: {tmp_path}/report.html" in text


@pytest.mark.parametrize(
    ("number", "said"),
    [(None, "not measured"), (0, "0 B"), (-3.2, "-3 B"), (1536, "1.50 KiB"), (5 << 30, "5.00 GiB")],
)
def test_sizes(number: float | None, said: str) -> None:
    assert report.size(number) == said


@pytest.mark.parametrize(
    ("microseconds", "said"),
    [(0, "0 µs"), (999, "999 µs"), (1_535, "1.53 ms"), (2_500_000, "2.5 s")],
)
def test_latencies(microseconds: int, said: str) -> None:
    assert report.latency(microseconds) == said


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0"), (999, "999"), (25e4, "250k"), (1.5e6, "1.5M"), (-2e3, "-2k")]
)
def test_axis_numbers(number: float, said: str) -> None:
    assert figures.short(number) == said


def test_cost_in_words() -> None:
    run = million()
    run.measured.kernel_bytes_per_connection = KernelBytes(server=4_000.0)
    assert report.cost(run)["line"] == (
        "kernel server 3.91 KiB, client not measured; agents server 40 B, client 15 B"
    )
    run.measured.kernel_bytes_per_connection = KernelBytes(both_ends=8_192.0, sockets=1.5)
    assert "with sockets of others" in report.cost(run)["line"]
    assert "The kernel gained 1.5 TCP sockets" in Page(report.render(run)).text
