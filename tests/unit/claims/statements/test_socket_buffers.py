"""Verdicts on what buffers take, from invented figures."""

from __future__ import annotations

import pytest

from bench.claims.statements.socket_buffers import SocketBuffersFound, judge_socket_buffers

FOUND = SocketBuffersFound(
    connections=500,
    minimum=8_192,
    idle_charged=0,
    idle_pages=0,
    idle_slab=None,
    sent=32_768,
    unread=32_768,
    buffered=34_448,
    charged=36_864,
    unread_pages=9,
    available_fall=37_000,
    rmem_max=6_291_456,
    wmem_max=4_194_304,
    never_read=127_872,
    never_read_rcvbuf=131_072,
    never_read_sent=727_008,
    stopped=5_923_832,
    stopped_rcvbuf=6_291_456,
    stopped_queued=2_969_704,
    cap_pages=3_000,
    capped_pages=3_010,
    capped_unread=9_000,
)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "depends"),
        ({"idle_charged": 8_192}, "confirmed"),
        ({"idle_charged": 8_192, "stopped": 100_000}, "depends"),
        ({"stopped": 100_000}, "depends"),
        ({"never_read": 30_000}, "depends"),
        ({"idle_charged": 8_191, "unread": 4_096, "buffered": 4_608, "sent": 4_096}, "refuted"),
        ({"unread": 20_000}, "inconclusive"),
        ({"buffered": 20_000}, "inconclusive"),
        ({"stopped_rcvbuf": 7_000_000}, "inconclusive"),
        ({"capped_pages": 5_000}, "depends"),
        ({"capped_pages": 5_001}, "inconclusive"),
    ],
)
def test_buffers_are_judged_by_the_kernels_account(changes, verdict) -> None:
    assert judge_socket_buffers(FOUND.model_copy(update=changes)).verdict == verdict


def test_what_swells_and_how_far_are_told_apart() -> None:
    unread = judge_socket_buffers(FOUND.model_copy(update={"stopped": 100_000}))
    assert "takes memory" in unread.reason and "up to tcp_rmem[2]" not in unread.reason
    assert "up to tcp_rmem[2]" in judge_socket_buffers(FOUND).reason


def test_a_part_that_was_not_shown_is_named() -> None:
    assert "tcp_mem of 3,000" in judge_socket_buffers(FOUND).measured
    alone = judge_socket_buffers(FOUND.model_copy(update={"cap_pages": None}))
    assert "tcp_mem" not in alone.measured and "was not shown here" in alone.reason


VM = FOUND.model_copy(
    update={
        "connections": 3_000,
        "sent": 49_152,
        "unread": 49_152,
        "buffered": 56_645,
        "unread_pages": 14.64,
        "cap_pages": 8_192,
        "capped_pages": 15_188,
        "capped_unread": 16_195,
    }
)
"""As Linux 6.1 had it: 14.64 pages a socket without the cap, 43,920 together."""


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "depends"),
        # 14,600 B take 16,826 B of memory there: five pages of each of 3,000 sockets.
        ({"capped_pages": 8_192 + 15_000}, "depends"),
        ({"capped_pages": 8_192 + 15_001}, "inconclusive"),
        ({"capped_pages": 43_920, "capped_unread": 49_152}, "inconclusive"),
        # Who sends less than the first flight has less to be taken beyond the cap: two pages.
        (
            {"sent": 4_096, "unread": 4_096, "buffered": 4_608, "capped_unread": 2_048},
            "inconclusive",
        ),
    ],
)
def test_each_socket_takes_a_first_segment_beyond_tcp_mem(changes, verdict) -> None:
    assert judge_socket_buffers(VM.model_copy(update=changes)).verdict == verdict


def test_a_cap_shows_where_it_kept_something_out() -> None:
    assert "first segment of each socket, together 23,192 pages" in judge_socket_buffers(VM).reason
    for unread, shown in [(44_236, True), (44_237, False), (49_152, False), (None, False)]:
        one = judge_socket_buffers(VM.model_copy(update={"capped_unread": unread}))
        assert one.verdict == "depends"
        assert ("was not shown here" in one.reason) is not shown
