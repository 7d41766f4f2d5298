"""Verdicts on what buffers take, from invented figures."""

from __future__ import annotations

import pytest

from bench.claims.buffers import SocketBuffersFound, judge_socket_buffers

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
        ({"capped_pages": 4_001}, "inconclusive"),
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
