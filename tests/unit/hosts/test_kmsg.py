from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from bench.hosts import kmsg

FIRST = b"6,2535,10083856318,-;data0: renamed from mv1\n SUBSYSTEM=net\n DEVICE=n12\n"
SECOND = b"4,2536,2101455,c;nf_conntrack: nf_conntrack: table full; dropping packet\n"


def reads(*answers: bytes | OSError) -> Callable[[], bytes]:
    left = iter(answers)

    def read() -> bytes:
        answer = next(left)
        if isinstance(answer, OSError):
            raise answer
        return answer

    return read


def test_a_record_as_dmesg_prints_it() -> None:
    assert kmsg.line(FIRST) == "[10083.856318] data0: renamed from mv1\n"
    said = "[    2.101455] nf_conntrack: nf_conntrack: table full; dropping packet\n"
    assert kmsg.line(SECOND) == said


def test_records_until_there_are_no_more_over_a_gap() -> None:
    gap, end = BrokenPipeError(errno.EPIPE, ""), BlockingIOError(errno.EAGAIN, "")
    assert list(kmsg.records(reads(FIRST, gap, SECOND, end))) == [FIRST, SECOND]
    assert list(kmsg.records(reads(SECOND, b""))) == [SECOND]


def test_a_device_that_may_not_be_read_says_nothing(tmp_path: Path) -> None:
    assert kmsg.read(tmp_path / "kmsg") == ""
