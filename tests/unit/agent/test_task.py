"""The memory floor, as an agent keeps it: by what is really free, at the floor and below it."""

import pytest

from bench.agent import board, task
from bench.agent.client import Client
from bench.agent.memory import Memory
from bench.agent.server import Server

FLOOR = 1_000_000


class Gauge:
    def __init__(self):
        self.free = FLOOR

    def read(self):
        # Most of what MemAvailable promises is pinned by sockets.
        return Memory(available=50 * FLOOR, free=self.free, slab=7)


def at(kind, named=""):
    """A task whose role is of that kind, without workers."""
    said = []
    made = task.Task(said.append, lambda: 1.0)
    made._gauge = Gauge()
    role = object.__new__(kind)
    role.spec = {"memory_floor_kib": FLOOR}
    role.board = board.Board(1)
    role.shut = lambda: said.append("shut")
    made.role, made.under_way = role, named
    made._tick_at = 500.0
    return made, role, said


@pytest.mark.parametrize(("kind", "named"), [(Client, "ramp"), (Server, "")])
def test_at_the_floor_itself_nothing_ends(kind, named):
    made, role, said = at(kind, named)
    assert made._check_memory() == task.WATCH[0]
    assert said == [] and not role.board.common[board.HALT]


def test_a_client_below_its_floor_ends_its_ramp_once_and_says_why():
    made, role, said = at(Client, "ramp")
    made._gauge.free = FLOOR - 1
    made._check_memory()
    assert role.board.common[board.HALT]
    assert made.reason == "memory"
    assert said == [{"event": "floor", "mem_free_kib": FLOOR - 1, "floor_kib": FLOOR}]
    assert made._tick_at == 0.0  # the controller has to know at once
    made._check_memory()
    assert len(said) == 1


def test_a_server_below_its_floor_shuts_its_door():
    made, role, said = at(Server)
    made._gauge.free = FLOOR - 1
    made._check_memory()
    assert role.board.common[board.HALT]
    assert said[0] == "shut"


def test_a_client_that_holds_need_not_keep_a_floor():
    made, role, said = at(Client, "echo")
    made._gauge.free = 0
    assert made._check_memory() == task.WATCH[1]
    assert said == [] and not role.board.common[board.HALT]


@pytest.mark.parametrize(
    ("left", "seconds"),
    [
        (0, task.WATCH[0]),
        (task.STEEPEST_KIB // 5, 0.1),
        (task.STEEPEST_KIB, 0.5),
        (100 * task.STEEPEST_KIB, task.WATCH[1]),
    ],
)
def test_the_next_look_comes_before_half_of_what_is_left_can_be_gone(left, seconds):
    made, _, _ = at(Server)
    made._gauge.free = FLOOR + left
    assert made._check_memory() == pytest.approx(seconds, rel=1e-3)


def test_a_client_that_was_halted_before_says_so():
    made, _, _ = at(Client, "ramp")
    made._gauge.free, made.reason = 0, "halted"
    made._check_memory()
    assert made.reason == "halted"
