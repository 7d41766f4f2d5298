"""Ticks in, curve points and progress out."""

from __future__ import annotations

import io
import json
from typing import Any

from bench import wire
from bench.run.curve import Descent, Progress, Recorder, latency, merge


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def tick(held: int, latencies: dict[str, int], available: int = 9_000) -> dict[str, Any]:
    return {
        "event": "tick",
        "held": held,
        "latency": latencies,
        "mem_available_kib": available,
        "slab_kib": 77,
    }


def test_points_sum_the_clients_and_take_the_poorest_server() -> None:
    clock, shown = Clock(), list[Progress]()
    samples = io.StringIO()
    recorder = Recorder(1_000, samples, shown.append, clock)
    recorder.enter("ramp")
    recorder.restart()
    slow = str(wire.bucket_of(5_000))
    recorder.tick("client1", "client", tick(100, {"3": 100}))
    recorder.tick("client2", "client", tick(50, {"3": 50}))
    recorder.tick("server1", "server", tick(150, {}, available=5_000))
    clock.now += 1.0
    recorder.sample()
    recorder.sample()
    recorder.tick("client1", "client", tick(300, {"3": 100, slow: 200}))
    clock.now += 2.0
    recorder.sample()
    assert [(point.t, point.held, point.rate) for point in recorder.points] == [
        (1.0, 150, 150.0),
        (3.0, 350, 100.0),
    ]
    assert recorder.points[0].p99_us == 3
    assert recorder.points[1].p99_us == wire.bucket_top(int(slow))
    assert recorder.points[1].mem_available_kib == 5_000
    assert shown[-1].seconds_left == (1_000 - 350) / 100.0
    lines = [json.loads(line) for line in samples.getvalue().splitlines()]
    assert [line["host"] for line in lines] == ["client1", "client2", "server1", "client1"]


def test_of_several_servers_the_poorest_is_shown_and_a_second_has_its_own_latencies() -> None:
    clock = Clock()
    recorder = Recorder(1_000, io.StringIO(), lambda now: None, clock)
    recorder.enter("ramp")
    recorder.restart()
    slow, quick = str(wire.bucket_of(9_000)), "3"
    recorder.tick("server1", "server", tick(0, {}, available=7_000))
    recorder.tick("server2", "server", tick(0, {}, available=6_000))
    recorder.tick("client1", "client", tick(100, {slow: 100}, available=1))
    clock.now += 1.0
    recorder.sample()
    recorder.tick("server1", "server", tick(0, {}, available=5_000))
    recorder.tick("client1", "client", tick(300, {slow: 100, quick: 200}))
    clock.now += 1.0
    recorder.sample()
    assert [point.mem_available_kib for point in recorder.points] == [6_000, 5_000]
    assert [point.p99_us for point in recorder.points] == [wire.bucket_top(int(slow)), 3]
    assert [point.rate for point in recorder.points] == [100.0, 200.0]


def test_the_rate_of_a_forced_point_covers_more_than_a_moment() -> None:
    clock = Clock()
    recorder = Recorder(1_000, io.StringIO(), lambda now: None, clock)
    recorder.enter("ramp")
    recorder.restart()
    recorder.tick("client1", "client", tick(100, {"3": 100}))
    clock.now += 1.0
    recorder.sample()
    recorder.tick("client1", "client", tick(300, {"3": 300}))
    clock.now += 1.0
    recorder.sample()
    recorder.tick("client1", "client", tick(400, {"3": 300, "200": 100}))
    clock.now += 0.25
    recorder.sample(force=True)
    assert [(point.t, point.held, point.rate) for point in recorder.points] == [
        (1.0, 100, 100.0),
        (2.0, 300, 200.0),
        (2.25, 400, 240.0),
    ]
    assert recorder.points[2].p99_us == wire.bucket_top(200)


def test_no_tick_no_point() -> None:
    clock = Clock()
    recorder = Recorder(10, io.StringIO(), lambda now: None, clock)
    clock.now += 5
    recorder.sample(force=True)
    assert recorder.points == []


def test_time_left_of_a_phase_of_known_length() -> None:
    clock, shown = Clock(), list[Progress]()
    recorder = Recorder(10, io.StringIO(), shown.append, clock)
    recorder.enter("hold", 10.0)
    recorder.tick("client1", "client", tick(10, {}))
    clock.now += 4
    recorder.sample()
    assert shown[-1].seconds_left == 6.0


def test_percentiles_of_merged_histograms() -> None:
    merged = merge([{"1": 98}, {"1": 1, "200": 1}])
    assert merged == {1: 99, 200: 1}
    found = latency(merged)
    assert (found.p50, found.p99) == (1, 1)
    assert found.max == wire.bucket_top(200)
    assert latency({}).max == 0


def test_each_percentile_is_its_own() -> None:
    buckets = [3, 60, 120, 180, 240]
    histogram = dict(zip(buckets, (5_000, 4_000, 900, 90, 10), strict=True))
    found = latency(histogram)
    told = [found.p50, found.p90, found.p99, found.p999, found.max]
    assert told == [wire.bucket_top(bucket) for bucket in buckets]


def test_a_note_is_said_once_and_is_no_point() -> None:
    shown = list[Progress]()
    recorder = Recorder(1_000, io.StringIO(), shown.append, Clock())
    recorder.note("forecast", "enough", 9_000)
    assert (shown[0].phase, shown[0].note, shown[0].mem_available_kib) == (
        "forecast",
        "enough",
        9_000,
    )
    assert not recorder.points


def descent(*looks: tuple[float, int], floor: int = 1_000) -> Descent:
    made = Descent(floor)
    for seconds, free in looks:
        made.tick(("server1", "server"), seconds, free)
    return made


def test_a_descent_is_near_when_two_seconds_of_its_pace_reach_the_floor() -> None:
    assert not descent().near()
    assert not descent((1, 5_000)).near()
    assert not descent((1, 5_000), (2, 4_000)).near()
    assert not descent((1, 5_000), (2, 4_000), (3, 3_001)).near()
    assert descent((1, 5_000), (2, 4_000), (3, 3_000)).near()
    assert descent((1, 1_000)).near()


def test_the_steepest_recent_pace_counts_and_older_ones_are_forgotten() -> None:
    steep = ((1, 9_000), (2, 6_000), (3, 6_000), (4, 6_000))
    assert descent(*steep).near()
    assert not descent(*steep, (5, 6_000), (6, 6_100)).near()


def test_looks_that_are_too_close_say_nothing_of_the_pace() -> None:
    assert not descent((1, 5_000), (1.01, 4_900)).near()


def test_the_host_that_is_nearest_decides() -> None:
    made = descent((1, 5_000), (2, 4_000))
    made.tick(("client1", "client"), 1, 3_000)
    made.tick(("client1", "client"), 2, 2_000)
    assert made.near() == ("client1", "client", 2_000)
