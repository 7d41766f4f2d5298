"""What an agent has to say to a controller that reads late, slowly, or never."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import wire
from bench.agent import outbox
from bench.agent.outbox import DROP_ABOVE, Gone, Outbox

SOON = 0.5
"""Seconds: far more than a write takes, far less than any wait."""


@contextlib.contextmanager
def pipe(size: int = 4096) -> Iterator[tuple[int, int]]:
    """A pipe of that many bytes, at least a page: (read end, write end)."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, size)
    try:
        yield reading, writing
    finally:
        for fd in (reading, writing):
            with contextlib.suppress(OSError):
                os.close(fd)


def numbered(number: int, length: int = 0, kind: str = "status") -> dict[str, object]:
    return {"event": kind, "number": number, "text": "x" * length}


def read_all(fd: int, out: Outbox, piece: int = 1 << 16) -> bytes:
    """What comes out while what waits is flushed, until nothing waits and nothing comes."""
    os.set_blocking(fd, False)
    received = bytearray()
    while True:
        out.flush()
        try:
            received += os.read(fd, piece)
        except BlockingIOError:
            if not out:
                return bytes(received)


def events(data: bytes) -> list[dict[str, object]]:
    assert not data or data.endswith(b"\n")
    return [wire.decode(line) for line in data.splitlines()]


def test_nobody_reads_and_nothing_waits_for_them() -> None:
    with pipe() as (_, writing):
        out = Outbox(writing)
        began = time.monotonic()
        for number in range(2000):
            out.put(numbered(number, 1000))
        assert time.monotonic() - began < SOON
        assert out


@pytest.mark.parametrize("kind", outbox.DROPPABLE)
def test_ticks_are_dropped_and_answers_are_not(kind: str) -> None:
    with pipe() as (reading, writing):
        out = Outbox(writing)
        for number in range(200):
            out.put(numbered(number, 1000, kind))
        out.put(numbered(200, 1000, "ramped"))
        out.put(numbered(201, 1000, kind))
        received = events(read_all(reading, out))
        kept = [event["number"] for event in received if event["event"] == kind]
        assert kept == list(range(len(kept)))
        assert DROP_ABOVE <= len(kept) * 1000 <= DROP_ABOVE + 4096 + 2000
        assert [event["number"] for event in received if event["event"] == "ramped"] == [200]
        out.put(numbered(202, 0, kind))  # the reader is back, and so are they
        assert [event["number"] for event in events(read_all(reading, out))] == [202]


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.integers(0, 20_000),  # bytes of an answer
            st.integers(-9000, -1),  # bytes that are read
        ),
        max_size=40,
    )
)
def test_lines_stay_whole_and_in_order(steps: list[int]) -> None:
    with pipe() as (reading, writing):
        out = Outbox(writing)
        os.set_blocking(reading, False)
        said, received = [], bytearray()
        for number, step in enumerate(steps):
            if step >= 0:
                said.append(numbered(number, step))
                out.put(said[-1])
            else:
                with contextlib.suppress(BlockingIOError):
                    received += os.read(reading, -step)
        received += read_all(reading, out)
        assert events(bytes(received)) == said


def test_several_threads_never_mix_their_lines() -> None:
    with pipe() as (reading, writing):
        out = Outbox(writing)

        def speak(first: int) -> None:
            for number in range(first, first + 50):
                out.put(numbered(number, 300))

        threads = [threading.Thread(target=speak, args=(first,)) for first in (0, 1000, 2000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        heard = [event["number"] for event in events(read_all(reading, out))]
        for first in (0, 1000, 2000):
            assert [n for n in heard if first <= n < first + 1000] == list(range(first, first + 50))


def test_a_long_line_is_not_copied_for_each_page_that_is_read() -> None:
    with pipe() as (reading, writing):
        out = Outbox(writing)
        out.put(numbered(1, 16 << 20))
        began = time.monotonic()
        received = read_all(reading, out, 4096)
        # 4,096 pieces: a copy of the rest for each would be 32 GiB.
        assert time.monotonic() - began < 3
        assert len(events(received)) == 1


def test_a_closed_pipe_is_a_controller_that_is_gone() -> None:
    with pipe() as (reading, writing):
        out = Outbox(writing)
        os.close(reading)
        with pytest.raises(Gone, match="the controller is gone"):
            out.put(numbered(1))
        with pytest.raises(Gone, match="the controller is gone"):
            out.flush()
        out.finish(5)


def test_too_much_unread_is_a_controller_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MOST_BYTES", 100_000)
    with pipe() as (_, writing):
        out = Outbox(writing)
        for number in range(100):
            out.put(numbered(number, 1000 - 50))
        with pytest.raises(Gone, match="bytes unread by the controller"):
            for number in range(10):
                out.put(numbered(number, 1000))
        most = out._bytes
        for number in range(10):  # whoever goes on takes no more memory
            with pytest.raises(Gone, match="bytes unread by the controller"):
                out.put(numbered(number, 1000))
        assert out._bytes == most


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_the_last_words_are_not_waited_for_without_end(seconds: float) -> None:
    with pipe() as (_, writing):
        out = Outbox(writing)
        out.put(numbered(1, 100_000))
        began = time.monotonic()
        out.finish(seconds)
        assert seconds <= time.monotonic() - began + 0.005 < seconds + SOON


def test_the_last_words_reach_whoever_reads() -> None:
    with pipe() as (reading, writing):
        out = Outbox(writing)
        out.put(numbered(1, 300_000))
        received = bytearray()

        def read() -> None:
            while not received.endswith(b"\n"):
                received.extend(os.read(reading, 5000))

        reader = threading.Thread(target=read)
        reader.start()
        out.finish(5)
        reader.join(5)
        assert len(events(bytes(received))) == 1
        assert not out
