"""The agents as one: what each kind of failure becomes, and that nothing is left behind."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_links import HELLO, PATH, FakeLink, FakeProcess, links

from bench import wire
from bench.errors import InputError, LabError
from bench.hosts import agent, scripts, session
from bench.hosts.session import Session
from bench.hosts.transport import NotRemoved
from bench.inventory import Host

TICK = {
    "event": "tick",
    "t": 1.5,
    "held": 1,
    "opened": 1,
    "closed": 0,
    "lost": 0,
    "retried": 0,
    "in_flight": 0,
    "errors": {},
    "latency": {},
    "mem_available_kib": 1,
    "mem_free_kib": 1,
    "slab_kib": 1,
}


def host(name: str) -> Host:
    return Host(name, ("servers",), "192.0.2.1", 22, "lab", None, None, ("198.18.0.1",))


def answering(message: dict[str, Any]) -> Sequence[Any]:
    if message["op"] == "":
        return [HELLO]
    return [TICK, {"event": {"halt": "halted", "stop": "stopped"}[message["op"]]}]


def test_asks_all_and_sorts_ticks_from_answers() -> None:
    made, connect = links(answering)
    ticks: list[str] = []
    with Session(connect, b"zip") as agents:
        agents.on_unasked = lambda agent, message: ticks.append(agent.name)
        agents.start([(host("a"), "server"), (host("b"), "client")])
        assert [agent.name for agent in agents.agents] == ["a", "b"]
        told = agents.ask(agents.agents, "halt", "halted", 5)
        assert {agent.name for agent in told} == {"a", "b"}
        agents.wait(0.05)
    assert sorted(ticks) == ["a", "b"]
    assert all(link.process.told[-1] == "stop" for link in made)
    assert all(not link.files and not link.open for link in made)


@pytest.mark.parametrize(
    ("reaction", "kind", "line"),
    [
        ({"event": "error", "kind": "fault", "message": "worker died"}, LabError, "worker died"),
        ({"event": "error", "kind": "refused", "message": "stranger"}, LabError, "stranger"),
        ({"event": "error", "kind": "input", "message": "bad"}, InputError, "bad"),
        (None, LabError, "the server agent ended unexpectedly: Traceback: the last words"),
        (b"Segmentation fault", LabError, "protocol: not a message: 'Segmentation fault'"),
    ],
)
def test_what_an_agent_says_becomes_one_line(
    reaction: Any, kind: type[Exception], line: str
) -> None:
    made, connect = links(lambda m: [HELLO] if m["op"] == "" else [reaction])
    with pytest.raises(kind, match=f"^host a: .*{line}"), Session(connect, b"zip") as agents:
        agents.start([(host("a"), "server")])
        agents.ask(agents.agents, "facts", "facts", 5)
    assert not made[0].files
    assert not made[0].open


@pytest.mark.parametrize("read", ["before", "meanwhile"])
def test_of_an_agent_that_ended_after_it_made_no_sense_the_latter_is_said(
    monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    made, connect = links(lambda m: [HELLO] if m["op"] == "" else [])

    def broken(data: bytes) -> None:
        if read == "meanwhile":
            made[0].process.say(b"junk", None)
        raise BrokenPipeError

    def last_words() -> None:
        until = time.monotonic() + 5
        while agent.misspoken is None and time.monotonic() < until:
            time.sleep(0.001)

    with (
        pytest.raises(LabError, match=r"^host a: protocol: not a message: 'junk'$"),
        Session(connect, b"zip") as agents,
    ):
        (agent,) = agents.start([(host("a"), "server")])
        monkeypatch.setattr(made[0].process, "write", broken)
        monkeypatch.setattr(agent, "await_last_words", last_words)
        if read == "before":
            made[0].process.say(b"junk", None)
            last_words()
        agents.tell([agent], "facts")


def test_no_answer_in_time() -> None:
    _, connect = links(lambda m: [HELLO] if m["op"] == "" else [])
    with (
        pytest.raises(LabError, match="host a: the server agent did not answer facts within 0 s"),
        Session(connect, b"zip") as agents,
    ):
        agents.start([(host("a"), "server")])
        agents.ask(agents.agents, "facts", "facts", 0.05)


def test_silence_is_mentioned_and_then_taken_for_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "QUIET_SECONDS", 0.6)
    monkeypatch.setattr(session, "CHECK_SECONDS", 0.05)
    _, connect = links(lambda m: [HELLO] if m["op"] == "" else [])
    quiet: list[str] = []
    with (
        pytest.raises(LabError, match=r"^host a: no word from the server agent for 1.2 s$"),
        Session(connect, b"zip", silence=1.2) as agents,
    ):
        agents.on_quiet = lambda agent, seconds: quiet.append(agent.name)
        agents.start([(host("a"), "server")])
        agents.wait(5)
    assert quiet == ["a"]


def test_an_agent_that_speaks_is_not_silent_because_others_speak_more() -> None:
    made, connect = links(lambda m: [HELLO] if m["op"] == "" else [])
    with (
        pytest.raises(LabError, match=r"^host b: no word from the client agent"),
        Session(connect, b"zip", silence=1.0) as agents,
    ):
        agents.start([(host("a"), "server"), (host("b"), "client")])
        loud = next(link for link in made if link is agents.agents[0].link)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            loud.process.say(TICK)
            agents.wait(0.01)


def test_the_controller_gives_signs_of_life() -> None:
    made, connect = links(lambda m: [HELLO] if m["op"] == "" else [])
    with Session(connect, b"zip", silence=1.0) as agents:
        agents.start([(host("a"), "server")])
        made[0].process.say(TICK)
        agents.wait(0.7)
        assert made[0].process.beats >= 1
    ended = made[0].process.beats
    time.sleep(0.4)
    assert made[0].process.beats == ended
    assert json.loads(made[0].argv[3]) == {"silence_seconds": 1.0, "lock": None}
    assert made[0].lost_after == 1.0


def test_a_host_of_another_run_is_refused_before_anything_is_pushed() -> None:
    made, connect = links(answering)
    holder = {"who": "ann@desk", "run": "run \x1b[31mmillion", "since": "2026-01-01T00:00:00Z"}

    def reach(to: Host) -> FakeLink:
        link = connect(to)
        link.held = [holder] if to.name == "b" else []
        return link

    line = r"^host b: a run holds it: ann@desk, run \\x1b\[31mmillion, since 2026-01-01T00:00:00Z$"
    with (
        pytest.raises(LabError, match=line),
        Session(reach, b"zip", doing="run test") as agents,
    ):
        agents.start([(host("a"), "server"), (host("b"), "client")])
    assert not any(link.argv or link.files or link.open for link in made)


@pytest.mark.parametrize("answer", ["", "x", "7", "[7]", '[{"who": 1}]', "[" * 200_000])
def test_an_answer_about_locks_that_makes_no_sense(answer: str) -> None:
    made, connect = links(answering)

    def reach(to: Host) -> FakeLink:
        link = connect(to)
        link.held = answer
        return link

    line = "^host a: cannot determine whether another run has it$"
    with pytest.raises(LabError, match=line), Session(reach, b"zip", doing="a run") as agents:
        agents.start([(host("a"), "server")])
    assert not made[0].open


def test_agents_are_told_whose_they_are() -> None:
    made, connect = links(answering)
    with Session(connect, b"zip", doing="run test") as agents:
        agents.start([(host("a"), "root")])
    assert made[0].argv[:5] == ["sudo", "-n", "python3", PATH, "trial"]
    lock = json.loads(made[0].argv[5])["lock"]
    assert (lock["owner"], lock["run"]) == (scripts.OWNER, "run test")
    assert "@" in lock["who"]


@pytest.mark.parametrize(
    ("remains", "line"),
    [
        (
            {"processes": [12, 13], "folder": False},
            f"host a: the server agent {PATH} is left: process 12, 13 cannot be killed",
        ),
        (
            {"processes": [], "folder": True},
            f"host a: the server agent {PATH}: its directory is left, something else is in it",
        ),
        (
            LabError("host a: python3: connection lost"),
            f"host a: the server agent {PATH} may be left: python3: connection lost",
        ),
        ("\x1b[2J", f"host a: the server agent {PATH} may be left: "),
        (
            "{}",
            f"host a: the server agent {PATH} may be left: its clean-up report was not understood",
        ),
    ],
)
def test_what_is_left_is_named_host_by_host(remains: Any, line: str) -> None:
    made, connect = links(answering)

    def reach(to: Host) -> FakeLink:
        link = connect(to)
        if to.name == "a":
            link.remains = remains
        return link

    with pytest.raises(LabError, match=f"^{re.escape(line)}"), Session(reach, b"zip") as agents:
        agents.start([(host("a"), "server"), (host("b"), "client"), (host("c"), "client")])
    assert all(link.process.told == ["stop"] and not link.open for link in made)


def test_all_that_was_not_put_back_is_named_up_to_a_bound() -> None:
    _, connect = links(answering)
    lines = [b"not put back: sysctl a: \x1b[2J", b" not put back: table b ", b"by the way"]
    agents = Session(connect, b"zip")

    def errors(self: FakeProcess) -> Iterator[bytes]:
        yield from lines

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeProcess, "errors", errors)
        agents.start([(host("x"), "root")])
        agents.close()
        assert agents.not_put_back == [
            "host x: not put back: sysctl a: \\x1b[2J",
            "host x: not put back: table b",
        ]
        lines[:] = [b"not put back: %d" % number + b"y" * 600 for number in range(50)]
        agents = Session(connect, b"zip")
        agents.start([(host("x"), "root")])
        agents.close()
    assert len(agents.not_put_back) == agent.MOST_NOT_PUT_BACK
    assert agents.not_put_back[0].startswith("host x: not put back: 0y")
    assert all(len(line) <= agent.MOST_ERROR + 20 for line in agents.not_put_back)


def test_one_agent_that_cannot_be_told_leaves_no_other_untold() -> None:
    made, connect = links(answering)

    def reach(to: Host) -> FakeLink:
        link = connect(to)
        if to.name == "a":
            link.process.write = broken  # type: ignore[method-assign]
        return link

    def broken(data: bytes) -> None:
        raise OSError("gone")

    with (
        pytest.raises(LabError, match=r"^host a: the server agent ended unexpectedly"),
        Session(reach, b"zip") as agents,
    ):
        agents.start([(host("a"), "server"), (host("b"), "client")])
        agents.tell(agents.agents, "halt")
    others = [link for link in made if link.process.told]
    assert [link.process.told for link in others] == [["halt", "stop"]]
    assert all(not link.open for link in made)


@pytest.mark.parametrize(("doing", "swept"), [("run test", 1), (None, 0)])
def test_the_lock_of_an_agent_that_died_is_removed(doing: str | None, swept: int) -> None:
    made, connect = links(answering)
    with (
        pytest.raises(LabError, match=r"^host a: the server agent ended unexpectedly"),
        Session(connect, b"zip", doing=doing) as agents,
    ):
        agents.start([(host("a"), "server"), (host("b"), "client")])
        next(link for link in made if link is agents.agents[0].link).process.say(None)
        agents.wait(5)
    assert sorted(link.swept for link in made) == [0, swept]


def test_a_flood_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "UNASKED_AT_ONCE", 100)
    made, connect = links(answering)
    line = "^host a: protocol: 1[0-9]{2} unsolicited events$"
    with pytest.raises(LabError, match=line), Session(connect, b"zip") as agents:
        agents.start([(host("a"), "server")])
        made[0].process.say(*[TICK] * 1000)
        agents.wait(5)


BIG = (1 << 53) - 1
FULL = {
    **TICK,
    **dict.fromkeys(("held", "opened", "closed", "lost", "retried", "in_flight"), BIG),
    "errors": dict.fromkeys(errno.errorcode.values(), BIG),
    "latency": {str(bucket): BIG for bucket in range(wire.BUCKETS)},
}
"""The longest tick that an agent sends."""


def test_a_flood_of_few_long_events_ends_the_run() -> None:
    """Every tick is kept: by their number alone they might have a hundred megabytes."""
    made, connect = links(answering)
    line = r"^host a: protocol: [0-9]{7} bytes of unsolicited events$"
    seen: list[str] = []
    with pytest.raises(LabError, match=line), Session(connect, b"zip") as agents:
        agents.on_unasked = lambda agent, message: seen.append(agent.name)
        agents.start([(host("a"), "server")])
        made[0].process.say(*[FULL] * 500)
        agents.wait(20)
    assert 200 < len(seen) < 400


def test_what_piles_up_while_nobody_reads_is_no_flood() -> None:
    made, connect = links(answering)
    seen: list[str] = []
    with Session(connect, b"zip") as agents:
        agents.on_unasked = lambda agent, message: seen.append(agent.name)
        agents.start([(host("a"), "server")])
        made[0].process.say(*[FULL] * 200)
        until = time.monotonic() + 20
        while len(seen) < 200 and time.monotonic() < until:
            agents.wait(0.1)
    assert len(seen) == 200


@pytest.mark.parametrize("more", [1, 50])
def test_an_answer_that_nobody_asked_for_ends_the_run(more: int) -> None:
    halted = {"event": "halted"}
    made, connect = links(lambda m: [HELLO] if m["op"] == "" else [halted])
    line = "^host a: protocol: halted: unsolicited answer$"
    with pytest.raises(LabError, match=line), Session(connect, b"zip") as agents:
        agents.start([(host("a"), "server")])
        for _ in range(3):
            agents.ask(agents.agents, "halt", "halted", 5)
        made[0].process.say(*[halted] * more)
        agents.wait(5)


def test_an_agent_that_takes_long_to_start_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(session, "CHECK_SECONDS", 0.02)
    made, connect = links(lambda m: [])
    with Session(connect, b"zip", silence=0.2) as agents:
        timer = threading.Timer(0.6, lambda: made[0].process.say(HELLO))
        timer.start()
        assert [agent.name for agent in agents.start([(host("a"), "server")])] == ["a"]
    timer.join()


def test_an_agent_that_never_starts_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "HELLO_SECONDS", 1.2)
    monkeypatch.setattr(session, "QUIET_SECONDS", 0.4)
    monkeypatch.setattr(session, "CHECK_SECONDS", 0.05)
    made, connect = links(lambda m: [])
    told: list[str] = []
    line = "^host a: no word from the server agent for 1.2 s since it was started$"
    with (
        pytest.raises(LabError, match=line),
        Session(connect, b"zip", silence=0.1, doing="a run") as agents,
    ):
        agents.on_quiet = lambda agent, seconds: told.append(agent.name)
        agents.start([(host("a"), "server")])
    assert told == ["a"]
    assert made[0].swept == 1  # it is taken for dead


def test_an_agent_may_be_as_late_as_it_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "HELLO_SECONDS", 0.1)
    monkeypatch.setattr(session, "CHECK_SECONDS", 0.05)
    made, connect = links(lambda m: [])
    with Session(connect, b"zip", silence=20) as agents:
        timer = threading.Timer(1.5, lambda: made[0].process.say(HELLO))
        timer.start()
        assert [agent.name for agent in agents.start([(host("a"), "server")])] == ["a"]
    timer.join()


def test_signs_of_life_are_no_hello(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "HELLO_SECONDS", 0.2)
    _, connect = links(lambda m: [{"event": "alive"}])
    line = "^host a: the server agent did not answer hello within 2 s$"
    with pytest.raises(LabError, match=line), Session(connect, b"zip", silence=1) as agents:
        threading.Thread(target=chatter, args=(agents,), daemon=True).start()
        agents.start([(host("a"), "server")])


def chatter(agents: Session) -> None:
    """Have agents say that they are there for 4 s."""
    for _ in range(40):
        time.sleep(0.1)
        for one in list(agents.agents):
            one.process.say({"event": "alive"})  # type: ignore[attr-defined]


def test_what_a_failed_start_leaves_is_named() -> None:
    made, connect = links(answering)

    def reach(to: Host) -> FakeLink:
        link = connect(to)
        link.start = broken  # type: ignore[method-assign]
        link.remove = stuck  # type: ignore[method-assign]
        return link

    def broken(argv: Sequence[str]) -> FakeProcess:
        raise LabError("host a: python3: connection lost")

    def stuck(path: str) -> None:
        raise LabError(f"host a: rm: {path} is left")

    line = f"^host a: python3: connection lost; host a: rm: {PATH} is left$"
    with pytest.raises(LabError, match=line), Session(reach, b"zip") as agents:
        agents.start([(host("a"), "server")])
    assert not made[0].open


class Held:
    """A step of a link that is under way when the run is interrupted, until it is let go."""

    def __init__(self, step: Callable[..., Any]) -> None:
        self.step = step
        self.begun, self.free = threading.Event(), threading.Event()

    def __call__(self, *words: Any) -> Any:
        self.begun.set()
        assert self.free.wait(20)
        return self.step(*words)


def interrupted(agents: Session, held: Held, later: float, *hosts: str) -> str:
    """Interrupt a start while a step is under way, which ends so much later; what is said."""

    def interrupt() -> None:
        held.begun.wait(20)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(later)
        held.free.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt) as caught, agents:
            agents.start([(host(name), "server") for name in hosts])
    finally:
        held.free.set()
        thread.join()
    return str(caught.value)


def holding(
    step: str, react: Callable[[dict[str, Any]], Sequence[Any]] = answering
) -> tuple[list[FakeLink], Callable[[Host], FakeLink], Held]:
    """Links of which that of host a does not get on with one step."""
    made, connect = links(react)
    held = Held(lambda *words: None)

    def reach(to: Host) -> FakeLink:
        link = connect(to)
        if to.name == "a":
            held.step = getattr(link, step)
            setattr(link, step, held)
        return link

    return made, reach, held


def test_an_interrupted_push_is_waited_for_and_taken_back() -> None:
    made, connect, held = holding("put")
    assert interrupted(Session(connect, b"zip"), held, 1.5, "a", "b") == ""
    assert not any(link.files or link.open for link in made)
    assert not held.step.__self__.argv  # type: ignore[attr-defined]  # and nothing is started


@pytest.mark.parametrize("role", ["a", "b"])
def test_an_agent_that_was_being_started_is_stopped(role: str) -> None:
    made, connect, held = holding("start")
    assert interrupted(Session(connect, b"zip"), held, 1.0, "a", "b") == ""
    assert all(link.process.told == ["stop"] for link in made if link.argv)
    assert not any(link.files or link.open for link in made)


def test_what_an_agent_leaves_that_was_being_started_is_named() -> None:
    made, connect, held = holding("start")

    def reach(to: Host) -> FakeLink:
        link = connect(to)
        link.remains = {"processes": [12], "folder": False}
        return link

    line = f"host a: the server agent {PATH} is left: process 12 cannot be killed"
    assert interrupted(Session(reach, b"zip"), held, 1.0, "a") == line
    assert not made[0].open


def test_a_push_that_does_not_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "WIND_UP_SECONDS", 0.3)
    made, connect, held = holding("put")
    said = interrupted(Session(connect, b"zip"), held, 4.0, "a", "b")
    assert re.fullmatch(r"host a: /tmp/connlab\.[A-Za-z0-9]{10}/agent\.pyz may be left", said)
    assert not any(link.open for link in made)


def test_who_interrupts_twice_learns_what_was_being_pushed() -> None:
    _, connect, held = holding("put")
    agents = Session(connect, b"zip")
    seen: list[list[str]] = []
    thread = threading.Thread(
        target=lambda: held.begun.wait(20) and seen.append(agents._open_ends())
    )
    thread.start()
    interrupted(agents, held, 1.0, "a")
    thread.join()
    assert len(seen[0]) == 1
    assert re.fullmatch(r"host a: /tmp/connlab\.[A-Za-z0-9]{10}/agent\.pyz", seen[0][0])
    assert agents._open_ends() == []


def test_nothing_waits_for_a_host_that_was_being_reached() -> None:
    """Nothing of it is left there; its link is closed whenever it comes."""
    made, connect = links(answering)
    held = Held(connect)
    began = time.monotonic()
    assert interrupted(Session(held, b"zip", doing="a run"), held, 0.0, "a") == ""
    assert time.monotonic() - began < 10
    until = time.monotonic() + 5
    while not made or made[0].open:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert not made[0].argv and not made[0].files


def test_a_host_that_is_being_asked_is_cut_off() -> None:
    made, connect, held = holding("run")
    assert interrupted(Session(connect, b"zip", doing="a run"), held, 1.0, "a", "b") == ""
    assert not any(link.argv or link.files or link.open for link in made)


def test_what_failed_pushes_leave_is_named_host_by_host() -> None:
    made, connect = links(answering)

    def reach(to: Host) -> FakeLink:
        link = connect(to)

        def broken(data: bytes, path: str) -> str:
            why = LabError(f"host {to.name}: {path}: connection lost")
            raise NotRemoved(why, f"host {to.name}: {path.rpartition('/')[0]} may be left")

        link.put = broken  # type: ignore[method-assign]
        return link

    with pytest.raises(LabError) as failure, Session(reach, b"zip") as agents:
        agents.start([(host("a"), "server"), (host("b"), "client")])
    path = r"/tmp/connlab\.[A-Za-z0-9]{10}"
    line = rf"host a: {path}/agent\.pyz: connection lost"
    line += rf"; host a: {path} may be left; host b: {path} may be left"
    assert re.fullmatch(line, str(failure.value))
    assert not any(link.open for link in made)


def test_an_interrupt_while_closing_waits_until_all_is_closed() -> None:
    made, connect = links(answering)

    def interrupted(argv: Sequence[str], seconds: float = 30.0) -> str:
        if argv[3:] and argv[3] == PATH:
            signal.raise_signal(signal.SIGTERM)
        return FakeLink.run(made[0], argv, seconds)

    with pytest.raises(KeyboardInterrupt), Session(connect, b"zip") as agents:
        agents.start([(host("a"), "server"), (host("b"), "client")])
        for link in made:
            link.run = interrupted  # type: ignore[method-assign]
    assert all(link.process.told == ["stop"] and not link.open for link in made)


@pytest.mark.parametrize("later", [1.4, 1e6])
def test_a_clock_that_runs_backwards_or_leaps_ends_the_run(later: float) -> None:
    made, connect = links(answering)
    line = rf"^host a: protocol: tick: t: got {later}, expected 1.5 to [0-9.]+$"
    with pytest.raises(LabError, match=line), Session(connect, b"zip") as agents:
        agents.start([(host("a"), "server")])
        made[0].process.say(TICK, {**TICK, "t": later})
        agents.wait(5)


def test_a_clock_that_stands_still_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    _, connect = links(answering)
    link: Any = connect(host("a"))
    one = agent.Agent(host("a"), "server", link, PATH, link.process)
    now = [one.started]
    monkeypatch.setattr(agent.time, "monotonic", lambda: now[0])
    for seconds, t in ((0, 3.0), (1, 3.0), (120, 3.0), (240, 63.0)):
        now[0] = one.started + seconds
        one.admit({"event": "tick", "t": t}, 100)
    now[0] += 1
    with pytest.raises(agent.ProtocolError, match=r"^tick: t: got 63\.0, expected 63\.5 to "):
        one.admit({"event": "tick", "t": 63.0}, 100)


def test_numbers_beyond_the_plan_end_the_run() -> None:
    made, connect = links(answering)
    line = "^host a: protocol: tick: held: got 201, expected at most the 200 planned$"
    with pytest.raises(LabError, match=line), Session(connect, b"zip") as agents:
        agents.start([(host("a"), "client")])
        agents.agents[0].planned = 200
        made[0].process.say({**TICK, "held": 201})
        agents.wait(5)


@pytest.mark.parametrize(
    ("python", "line"),
    [
        ("", "host a: python3: not found, expected 3.9 or newer"),
        ("3.8", "host a: python3: got 3.8, expected 3.9 or newer"),
        ("2.7", "host a: python3: got 2.7, expected 3.9 or newer"),
        ("\x1b[2J", r"host a: python3: got \\x1b\[2J, expected 3.9 or newer"),
    ],
)
def test_a_host_without_a_python_that_serves(python: str, line: str) -> None:
    made, connect = links(answering, python)
    with pytest.raises(InputError, match=line), Session(connect, b"zip") as agents:
        agents.start([(host("a"), "server")])
    assert not made[0].files
    assert not made[0].open


@pytest.mark.parametrize("there", ["nothing", "broken", "python"])
def test_a_host_that_cannot_be_asked_is_not_said_to_have_no_python(
    tmp_path: Path, there: str
) -> None:
    """The question as a shell answers it, where what fails is an error, as over SSH."""
    if there != "nothing":
        script = "echo 3.11" if there == "python" else "exit 3"
        (tmp_path / "python3").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "python3").chmod(0o755)

    class Shell(FakeLink):
        def run(self, argv: Sequence[str], seconds: float = 30.0) -> str:
            done = subprocess.run(
                ["/bin/sh", *argv[1:]],
                env={"PATH": str(tmp_path)},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise LabError(f"host a: sh: exit status {done.returncode}")
            return done.stdout

    link = Shell(answering, "")
    if there == "python":
        scripts.look(host("a"), link, None)
        return
    kind, line = {
        "nothing": (InputError, "^host a: python3: not found, expected 3.9 or newer$"),
        "broken": (LabError, "^host a: sh: exit status 3$"),
    }[there]
    with pytest.raises(kind, match=line):
        scripts.look(host("a"), link, None)


def test_an_agent_of_another_version() -> None:
    _, connect = links(lambda m: [{**HELLO, "version": 99}] if m["op"] == "" else [])
    with (
        pytest.raises(LabError, match="host a: agent speaks version 99"),
        Session(connect, b"zip") as agents,
    ):
        agents.start([(host("a"), "server")])


def ended(monkeypatch: pytest.MonkeyPatch, drained: bool) -> list[set[str]]:
    """Which roles a session stops together, in order."""
    _, connect = links(answering)
    together: list[set[str]] = []
    with Session(connect, b"zip") as agents:
        stop_all = agents._stop_all
        monkeypatch.setattr(
            agents,
            "_stop_all",
            lambda some: together.append({one.role for one in some}) or stop_all(some),
        )
        roles = ("root", "server", "trial", "client")
        agents.start([(host(role), role) for role in roles])
        agents.close(drained=drained)
    return [roles for roles in together if roles]


def test_clients_end_before_servers_and_what_was_set_as_root_goes_back_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ended(monkeypatch, drained=False) == [{"client", "trial"}, {"server"}, {"root"}]


def test_where_nothing_is_held_all_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(monkeypatch, drained=True) == [{"client", "trial", "server", "root"}]


def test_the_oldest_python_that_serves() -> None:
    made, connect = links(answering, "3.9")
    with Session(connect, b"zip") as agents:
        agents.start([(host("a"), "server")])
        assert made[0].argv
