"""How lines come out of what a channel receives, whatever its pieces are."""

from __future__ import annotations

import time

import pytest

from bench.hosts import channel


def split(pieces: list[bytes], most: int = 10, *, cut: bool = False) -> list[bytes]:
    left = iter([*pieces, b""])
    return list(channel.split(lambda: next(left), most, cut=cut))


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([], []),
        ([b"a\nb\n"], [b"a", b"b"]),
        ([b"a", b"\n", b"b"], [b"a", b"b"]),
        ([b"\n\na", b"b\n"], [b"", b"", b"ab"]),
        ([b"0123456789\n", b"01234", b"56789"], [b"0123456789", b"0123456789"]),
    ],
)
def test_lines(pieces: list[bytes], lines: list[bytes]) -> None:
    assert split(pieces) == lines
    assert split(pieces, cut=True) == lines


@pytest.mark.parametrize("pieces", [[b"0123456789a\n"], [b"a\n01234", b"56789", b"a"]])
def test_a_line_that_is_too_long(pieces: list[bytes]) -> None:
    with pytest.raises(channel.LineTooLong, match=r"^a line of more than 0 MiB$"):
        split(pieces)
    assert split(pieces, cut=True)[-1] == b"0123456789"


def test_lines_after_one_that_is_cut_are_whole() -> None:
    assert split([b"0123456789abc", b"def\nnext\n"], cut=True) == [b"0123456789", b"next"]


def test_what_a_long_line_costs_grows_with_its_length_alone() -> None:
    pieces = [b"x" * 256] * (1 << 13)  # 2 MiB; copying it for each piece takes seconds
    begun = time.process_time()
    assert len(split(pieces, 1 << 24)[0]) == 1 << 21
    assert time.process_time() - begun < 0.5


def test_more_than_the_window_is_refused() -> None:
    pipe = channel.BoundedPipe()
    pipe.feed(bytes(channel.WINDOW_BYTES))
    with pytest.raises(Exception, match=r"^more data than the window allows$"):
        pipe.feed(b"x")
    assert len(pipe.read(1 << 16)) == 1 << 16
    pipe.feed(bytes(1 << 16))
