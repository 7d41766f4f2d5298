"""Messages on their way to one reader: in order, and bounded for each sender."""

from __future__ import annotations

import threading
import time
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from bench.hosts.inbox import Inbox


def later(work: object, *words: object) -> threading.Thread:
    assert callable(work)
    thread = threading.Thread(target=work, args=words, daemon=True)
    thread.start()
    return thread


def test_the_oldest_comes_first() -> None:
    inbox: Inbox[str, int] = Inbox()
    for number in range(5):
        inbox.put("a" if number % 2 else "b", number, 1)
    assert [inbox.get(0) for _ in range(6)] == [
        ("b", 0),
        ("a", 1),
        ("b", 2),
        ("a", 3),
        ("b", 4),
        None,
    ]


def test_nothing_comes_in_time() -> None:
    inbox: Inbox[str, int] = Inbox()
    began = time.monotonic()
    assert inbox.get(0.1) is None
    assert 0.1 <= time.monotonic() - began < 1


def test_what_comes_is_not_waited_for_any_longer() -> None:
    inbox: Inbox[str, int] = Inbox()
    threading.Timer(0.05, inbox.put, ("a", 7, 1)).start()
    began = time.monotonic()
    assert inbox.get(10) == ("a", 7)
    assert time.monotonic() - began < 2


def test_a_sender_beyond_its_bound_waits_and_others_do_not() -> None:
    inbox: Inbox[str, str] = Inbox(most=10)
    inbox.put("a", "first", 11)  # any one message may come
    blocked = later(inbox.put, "a", "second", 1)
    began = time.monotonic()
    for _ in range(10):
        inbox.put("b", "other", 1)
    assert time.monotonic() - began < 1
    blocked.join(0.1)
    assert blocked.is_alive()
    assert inbox.get(0) == ("a", "first")
    blocked.join(5)
    assert not blocked.is_alive()
    assert [inbox.get(0) for _ in range(12)] == [*[("b", "other")] * 10, ("a", "second"), None]


def test_closing_lets_everybody_go() -> None:
    inbox: Inbox[str, str] = Inbox(most=0)
    inbox.put("a", "first", 1)
    blocked = [later(inbox.put, "a", "second", 1) for _ in range(3)]
    inbox.close()
    for thread in blocked:
        thread.join(5)
        assert not thread.is_alive()
    inbox.put("a", "third", 1)
    assert inbox.get(0) is None


@given(
    st.lists(
        st.none() | st.tuples(st.sampled_from("abc"), st.integers(0, 15)),
        max_size=60,
    )
)
def test_it_is_a_queue_as_long_as_nobody_is_beyond_the_bound(
    steps: list[tuple[str, int] | None],
) -> None:
    inbox: Inbox[str, int] = Inbox(most=20)
    model: deque[tuple[str, int, int]] = deque()
    for number, step in enumerate(steps):
        if step is None:
            expected = model.popleft() if model else None
            assert inbox.get(0) == (expected[:2] if expected else None)
            continue
        sender, size = step
        if sum(each[2] for each in model if each[0] == sender) <= 20:
            inbox.put(sender, number, size)
            model.append((sender, number, size))
    while model:
        assert inbox.get(0) == model.popleft()[:2]
    assert inbox.get(0) is None


def test_many_senders_and_a_slow_reader_lose_nothing() -> None:
    inbox: Inbox[int, int] = Inbox(most=50)

    def speak(sender: int) -> None:
        for number in range(200):
            inbox.put(sender, number, 10)

    threads = [later(speak, sender) for sender in range(4)]
    heard: dict[int, list[int]] = {sender: [] for sender in range(4)}
    for _ in range(800):
        came = inbox.get(5)
        assert came is not None
        heard[came[0]].append(came[1])
    assert all(numbers == list(range(200)) for numbers in heard.values())
    for thread in threads:
        thread.join(5)
