"""Connections that no server has: found when there are more than can be under way, never else."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.run.strays import Strays

ALLOWED = 100
PLENTY = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def server(t: float, opened: int) -> dict[str, float]:
    return {"t": t, "held": 0, "opened": opened}


def client(held: int) -> dict[str, float]:
    return {"t": 0.0, "held": held, "opened": held}


def test_one_more_than_can_be_under_way_is_found() -> None:
    for held, expected in ((1000 + ALLOWED, 0), (1000 + ALLOWED + 1, ALLOWED + 1)):
        clock = Clock()
        strays = Strays(ALLOWED, {"s1": PLENTY, "s2": PLENTY}, clock)
        strays.tick("c1", "client", client(held - 30))
        strays.tick("c2", "client", client(30))
        strays.tick("s1", "server", server(5, 400))
        strays.tick("s2", "server", server(7, 600))
        assert strays.found() == 0
        clock.now += 1
        strays.tick("s1", "server", server(6, 400))
        assert strays.found() == 0  # nothing new of the other server
        strays.tick("s2", "server", server(8, 600))
        assert strays.found() == expected


def test_a_tick_has_to_be_a_second_younger_than_the_look() -> None:
    clock = Clock()
    strays = Strays(0, {"s": PLENTY}, clock)
    strays.tick("c", "client", client(50))
    strays.tick("s", "server", server(0, 0))
    assert strays.found() == 0
    clock.now += 0.99
    strays.tick("s", "server", server(0.99, 0))
    assert strays.found() == 0
    clock.now += 0.01
    strays.tick("s", "server", server(1.0, 0))
    assert strays.found() == 50


def test_ticks_that_come_late_count_as_old_as_they_are() -> None:
    """From the third second on a host's ticks take two seconds: its SSH server is starved."""
    clock = Clock()
    strays = Strays(ALLOWED, {"s": PLENTY}, clock)
    for second in range(12):
        strays.tick("c", "client", client(1000 * second))
        if second < 3 or second >= 5:
            counted = second if second < 3 else second - 2
            strays.tick("s", "server", server(counted, 1000 * counted))
        assert strays.found() == 0
        clock.now += 1


def test_nothing_is_known_without_a_server() -> None:
    clock = Clock()
    strays = Strays(0, {"s": PLENTY}, clock)
    strays.tick("c", "client", client(50))
    for _ in range(5):
        assert strays.found() == 0
        clock.now += 1


def test_a_server_that_was_not_heard_yet_is_waited_for() -> None:
    clock = Clock()
    strays = Strays(0, {"s1": PLENTY, "s2": PLENTY}, clock)
    strays.tick("c", "client", client(5000))
    for second in range(5):
        strays.tick("s1", "server", server(second, 2500))
        assert strays.found() == 0
        clock.now += 1
    for second in range(2):
        strays.tick("s1", "server", server(5 + second, 2500))
        strays.tick("s2", "server", server(second, 2500))
        assert strays.found() == 0
        clock.now += 1


def test_a_server_counts_for_no_more_than_its_part_of_the_plan() -> None:
    clock = Clock()
    strays = Strays(ALLOWED, {"s1": 500, "s2": 500}, clock)
    for second in range(3):
        strays.tick("c", "client", client(1000))
        strays.tick("s1", "server", server(second, 2**53))
        strays.tick("s2", "server", server(second, 300))
        found = strays.found()
        clock.now += 1
    assert found == 200


def test_what_was_accepted_counts_also_when_it_is_closed() -> None:
    clock = Clock()
    strays = Strays(0, {"s": PLENTY}, clock)
    strays.tick("s", "server", server(0, 0))
    strays.tick("c", "client", client(50))
    strays.found()
    clock.now += 1
    strays.tick("s", "server", {"t": 1.0, "held": 0, "opened": 50})
    assert strays.found() == 0


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5000),  # opened by the clients in this second
            st.integers(0, 300),  # closed by them
            st.integers(0, ALLOWED),  # not accepted yet at its end
            st.integers(0, 3),  # seconds that the server's tick is held up
            st.integers(0, 3),  # seconds that the client's tick is held up
        ),
        min_size=3,
        max_size=30,
    ),
    st.integers(0, 3),  # seconds by which all of the server's ticks but the first lag
)
def test_servers_that_accept_all_within_the_allowance_are_never_accused(
    seconds: list[tuple[int, int, int, int, int]], lag: int
) -> None:
    clock = Clock()
    strays = Strays(ALLOWED, {"server": PLENTY}, clock)
    opened = held = 0
    accepted = 0
    arrivals: list[tuple[float, int, str, dict[str, float]]] = []
    late = {"client": 0.0, "server": 0.0}
    for number, (opens, closes, waiting, slow, slower) in enumerate(seconds):
        opened += opens
        held = max(0, held + opens - closes)
        accepted = max(accepted, opened - waiting)
        for role, message, delay in (
            ("client", client(held), slower),
            # The first comes at once, so that the server's clock is known.
            ("server", server(number, accepted), lag + slow if number else 0),
        ):
            late[role] = max(late[role], number + delay)  # in order: it is one channel
            arrivals.append((late[role], len(arrivals), role, message))
    for at, _, role, message in sorted(arrivals, key=lambda each: each[:2]):
        clock.now = 1000 + at
        strays.tick(role, role, message)
        assert strays.found() == 0


def test_where_connections_go_as_well_those_that_are_held_count() -> None:
    clock = Clock()
    strays = Strays(ALLOWED, {"s": PLENTY}, clock, counted="held")
    for t, held in ((0.0, 900), (1.0, 899)):
        strays.tick("c", "client", client(1000))
        strays.tick("s", "server", {"t": t, "held": held, "opened": 5000})
        assert strays.found() == (0 if held == 900 else ALLOWED + 1)
        clock.now += 1
