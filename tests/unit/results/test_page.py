from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from runs import aborted, curve, million, stopped

from bench.results import classic, figures, page, words
from bench.results.format import (
    EchoRound,
    Established,
    Forecast,
    KernelBytes,
    Latency,
    Run,
    Setting,
)

ALL = (million, stopped, aborted)


@cache
def page_of(made: Callable[[], Run]) -> str:
    return page.render(made())


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
    parsed = Page(html)
    assert parsed.fetched == []
    assert not parsed.tags & {"script", "iframe", "link", "img", "object"}
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", html)
    assert "var(--one)" in html and "prefers-color-scheme: dark" in html


@pytest.mark.parametrize("made", ALL)
def test_one_run_gives_the_same_page(made) -> None:
    assert page.render(made()) == page_of(made)


@pytest.mark.parametrize("made", ALL)
def test_page_comes_from_run_json_alone(made) -> None:
    run = made()
    again = Run.model_validate_json(run.model_dump_json(by_alias=True))
    assert page.render(again) == page_of(made)


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
        "too early for a curve",
        "not measured",
        "none was started",
        "Nothing was counted.",
        "No error was counted.",
        "No role has left a record",
        "ended before the hosts had reported their limits",
    ):
        assert said in text, said


def test_a_ramp_that_was_cut_off_shows_how_far_it_got() -> None:
    run = aborted()
    run.curve = curve(1_000_000, 26, 0)[:14]
    held = f"{run.curve[-1].held:,}"
    text = Page(page.render(run)).text
    assert f"Held {held} of 1,000,000, as the clients reported; not counted" in text
    assert "the ramp did not end" in text
    assert any(f"the clients reported {held} of" in line for line in words.summary(run))


@pytest.mark.parametrize("points", [0, 1, 2, 3])
def test_few_points_are_no_trouble(points: int) -> None:
    run = million()
    run.curve = curve(10, 1, 2)[:points]
    html = page.render(run)
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
    parsed = Page(page.render(run))
    assert "script" not in parsed.tags
    assert parsed.text.count('alert("$x$")') >= 8


def test_missing_evidence_is_listed() -> None:
    run = million()
    run.hosts["server1"].phases["peak"].missing = {"slabinfo": "Permission denied"}
    assert "server1 peak slabinfo : Permission denied" in Page(page.render(run)).text


@pytest.mark.parametrize("made", ALL)
def test_summary_is_short_and_fits(made) -> None:
    lines = words.summary(made())
    assert all(len(line) <= words.COLUMNS for line in lines)
    assert len(lines) <= 7
    assert not any("others" in line for line in lines)
    assert lines[0].startswith(made().verdict.upper())
    assert lines[-1] == f"report: results/{made().run_id}/report.html"


def test_summary_of_a_whole_run(tmp_path) -> None:
    text = "\n".join(words.summary(million(), tmp_path))
    assert "held 1,000,000 of 1,000,000" in text
    assert "44,623 connections a second" in text
    assert "kernel 7.9" in text
    assert "bound by: none; the model expected at most 1,032,192 (tuples)" in text
    assert f"report: {tmp_path}/report.html" in text


def test_the_summary_tells_each_count_and_percentile_by_its_name() -> None:
    run = million()
    run.measured.established = Established(clients=900_001, servers=800_002, ss=700_003)
    run.measured.connect_latency_us = Latency(p50=11, p90=22, p99=33, p999=44, max=55)
    text = " ".join(" ".join(words.summary(run)).split())
    assert "held 900,001 of 1,000,000 (clients 900,001, servers 800,002, ss 700,003)" in text
    assert "connect p50 11 µs, p99 33 µs" in text


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0"), (999, "999"), (25e4, "250k"), (1.5e6, "1.5M"), (-2e3, "-2k")]
)
def test_axis_numbers(number: float, said: str) -> None:
    assert figures.short(number) == said


def test_cost_in_words() -> None:
    run = million()
    run.measured.kernel_bytes_per_connection = KernelBytes(server=4_000.0)
    assert words.cost(run)["line"] == (
        "kernel server 3.91 KiB, client not measured; agents server 40 B, client 15 B"
    )
    run.measured.kernel_bytes_per_connection = KernelBytes(both_ends=8_192.0, sockets=1.5)
    assert "other programs' sockets included" in words.cost(run)["line"]
    assert "The kernel gained 1.5 TCP sockets" in Page(page.render(run)).text


FORECAST = Forecast(
    host="server1",
    connections=1_000_000,
    mem_free_kib=3_780_000,
    mem_available_kib=3_750_000,
    slab_kib=3_623_000,
    descriptors_kib=16_113,
    agents_kib=7_812,
    mem_free_expected_kib=133_075,
)


def test_a_forecast_in_one_line() -> None:
    made = million().predicted.model_copy(update={"forecast": FORECAST})
    assert words.forecast(made, 16) == (
        "server1 has MemFree 3.60 GiB, MemAvailable 3.58 GiB; 1,000,000 connections x (3,710 B "
        "slab + 24 B tables and agents) = 3.48 GiB, which leaves 129.96 MiB free; all hosts "
        "together have memory for 2,870,114 above 16 MiB"
    )
    short = FORECAST.model_copy(update={"mem_free_expected_kib": -44_000})
    assert "= 3.65 GiB, 42.97 MiB more than is free; " in words.forecast(
        made.model_copy(update={"forecast": short}), 16
    )
    alone = made.model_copy(update={"limits": {}})
    assert words.forecast(alone, 16).endswith("which leaves 129.96 MiB free")
    assert words.forecast(million().predicted, 16) == ""


def test_a_forecast_stands_beside_what_was_found() -> None:
    run = stopped()
    run.predicted.forecast = FORECAST
    said = "MemFree on server1: 129.96 MiB expected with 1,000,000 connections, 787.06 MiB measured"
    assert said in Page(page.render(run)).text
    run.hosts["server1"].phases.pop("peak")
    assert "MemFree on server1" not in Page(page.render(run)).text


def in_virtual_machines(held: int = 1_000_000, **meminfo: int) -> Run:
    """A run on kernels apart that came as far as the classic experiment."""
    run = stopped()
    run.measured.established = Established(clients=held, servers=held, ss=held)
    peak = run.hosts["server1"].phases["peak"]
    peak.held = held
    peak.meminfo_kib |= {
        "Slab": 3_702_212,
        "MemFree": 106_284,
        "MemAvailable": 1_146_196,
        **meminfo,
    }
    return run


def test_a_million_on_a_machine_of_its_own_stands_beside_the_classic_experiment() -> None:
    run = in_virtual_machines()
    text = Page(page.render(run)).text
    for said in (
        "kernel 6.1.0-56-cloud-amd64 3.10",
        "ESTAB, counted by ss 1,000,000 1,000,024",
        "Slab 3,702,212 kB 3,241,244 kB",
        "MemFree 106,284 kB 96,652 kB",
        "MemAvailable 1,146,196 kB 6,448 kB",
        "Slab / ESTAB 3.70 KiB 3.24 KiB",
        "growth of Slab / ESTAB 3.83 KiB not known",
        "A connection takes 3.83 KiB of this kernel: TCP 2.28 KiB, sock_inode_cache 861 B, filp",
        "security modules' blobs (lsm_*) 56 B.",
        # 3,319 B in all less 861 + 256 + 195 + 56.
        "would leave at most 1.91 KiB for the socket itself. Here the socket takes 2.28 KiB",
        # (861 + 195) B a socket.
        "MemAvailable includes 1,006.70 MiB of the live sockets' own inodes",
    ):
        assert said in text, said


def test_only_what_is_like_the_classic_experiment_is_set_beside_it() -> None:
    assert classic.compare(in_virtual_machines(900_000))
    assert classic.compare(in_virtual_machines(899_999)) is None
    assert not any(classic.compare(made()) for made in ALL)
    for substrate in ("local", "remote"):
        assert (
            classic.compare(in_virtual_machines().model_copy(update={"substrate": substrate}))
            is None
        )
    two = in_virtual_machines()
    two.hosts["server2"] = two.hosts["server1"]
    assert classic.compare(two) is None
    early = in_virtual_machines()
    early.hosts["server1"].phases.pop("peak")
    assert classic.compare(early) is None


def test_the_comparison_claims_nothing_that_was_not_measured() -> None:
    run = in_virtual_machines(MemAvailable=6_448)
    run.hosts["server1"].phases["peak"].meminfo_kib.pop("MemFree")
    run.measured.kernel_bytes_per_connection = KernelBytes(server=4_000.0, by_cache={"Slab": 4e3})
    made = classic.compare(run)
    assert made is not None
    assert made.why == []
    assert "MemFree not measured 96,652 kB" in Page(page.render(run)).text
    run.measured.kernel_bytes_per_connection = KernelBytes(server=3_000.0, by_cache={"TCP": 2e3})
    cheaper = classic.compare(run)
    assert cheaper is not None
    assert cheaper.why == []


def rounds(**changed: object) -> list[EchoRound]:
    one = EchoRound(
        mode="pipelined",
        asked=1_000_000,
        answered=999_998,
        wrong=1,
        silent=1,
        seconds=12.5,
        latency_us=Latency(p50=1_535, p90=2_303, p99=3_071, p999=9_215, max=212_991),
        client_cpu_seconds=9.5,
        server_cpu_seconds=11.25,
    )
    few = {"mode": "sequential", "asked": 100, "answered": 100, "wrong": 0, "silent": 0}
    return [one, one, one.model_copy(update={**few, **changed})]


def test_rounds_are_a_table_where_there_are_any() -> None:
    assert "Echo rounds" not in page_of(million)
    run = million()
    run.measured.rounds = rounds()
    text = Page(page.render(run)).text
    for said in (
        "Echo rounds: one byte on every connection, one byte back",
        "999,998 of 1,000,000",
        "12.500 80,000 1.53 ms 3.07 ms 9.21 ms 213 ms 9.5 µs 11.2 µs",
        "3 sequential 100 of 100",
    ):
        assert said in text, said


def test_a_round_of_nothing_has_no_figures() -> None:
    run = million()
    run.measured.rounds = rounds(asked=0, answered=0, seconds=0.0, latency_us=Latency())[2:]
    dashes = " \N{EN DASH}" * 7
    assert f"0 of 0 0 0 0.000{dashes}" in Page(page.render(run)).text
    assert "of CPU" not in words.echo_round(run.measured.rounds[0])


def test_the_summary_has_the_latest_round_of_each_mode() -> None:
    run = million()
    before = len(words.summary(run))
    run.measured.rounds = rounds()
    lines = words.summary(run)
    assert all(len(line) <= words.COLUMNS for line in lines)
    text = " ".join(" ".join(lines).split())
    assert (
        "echo round 2 of 3: 999,998 of 1,000,000 bytes answered, 1 wrong, 1 silent, pipelined, "
        "in 12.500 s, 20.8 µs of CPU each, p50 1.53 ms, p99 3.07 ms"
    ) in text
    assert "echo round 3 of 3: 100 of 100 bytes answered, sequential" in text
    assert "echo round 1 of 3" not in text
    assert len(lines) == before + 4
