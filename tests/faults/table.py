"""The faults: what is done, to whom, in which phases, and what has to come of it.

A run in which something failed ends with exit status 3 and verdict ``aborted``, one that was
interrupted with 130, one that measured what it was not to find with 1 and verdict ``fail``. What
does not concern a phase any more must not fail it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping

from driver import BEFORE, PHASES, SILENCE, Expect, Fault, Scene
from hosts import Stranger, fill, run, small_disk
from labs import CLIENTS, SERVER

from bench.agent import memory
from bench.results.store import Store

CONTROLLER = "controller"
BOTH = (SERVER, CLIENTS[0])
LOST_SECONDS = SILENCE + 16.0
"""For a host that is lost: noticed after the silence, and then its clean-up is tried once more."""

KEPT = frozenset({"aborted"})

PASSES = Expect(frozenset({0}), "^PASS", frozenset({"pass"}), 45)
FAILS = Expect(frozenset({1}), "^FAIL", frozenset({"fail"}), 60)
INTERRUPTED = Expect(
    frozenset({130}), "^interrupted; everything that the run opened is closed$", KEPT
)
NOBODY_LEFT = Expect(frozenset({-signal.SIGKILL}), seconds=5)


def broken(line: str, seconds: float = 15.0) -> Expect:
    """A run that the lab has failed."""
    return Expect(frozenset({3}), line, KEPT, seconds)


def every(expect: Expect, phases: Iterable[str] = PHASES) -> Mapping[str, Expect]:
    """The same in all phases."""
    return dict.fromkeys(phases, expect)


def send(number: signal.Signals, pids: Callable[[Scene], Iterable[int]]) -> Callable[[Scene], None]:
    """A fault that is a signal."""

    def inject(scene: Scene) -> None:
        for pid in pids(scene):
            # It may just have ended by itself: then its run is over, which shows.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    return inject


def controller(scene: Scene) -> list[int]:
    """The controller itself."""
    return [scene.controller]


def agent(scene: Scene) -> list[int]:
    """The agent of the host that is harmed."""
    return scene.target.agents()


def worker(scene: Scene) -> list[int]:
    """The first of its workers: the one that opens."""
    return scene.target.agents(workers=True)[:1]


def _twice(scene: Scene) -> None:
    """An interrupt, an agent that is stopped and so keeps the closing waiting, and another."""
    host = scene.lab.hosts[CLIENTS[0]]
    stopped = host.agents()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)

    def resume() -> None:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    scene.stack.callback(resume)
    os.kill(scene.controller, signal.SIGINT)
    time.sleep(1.5)
    os.kill(scene.controller, signal.SIGINT)


def _fill_results(scene: Scene) -> None:
    fill(scene.results)


def _disk(scene: Scene) -> None:
    scene.stack.enter_context(small_disk(scene.results, 48))


def _step(scene: Scene) -> None:
    (scene.folder / "clock").write_text("-86400")


def _was_stepped(scene: Scene) -> None:
    """See that the fault was one: by the run's own clock it ended a day before it began."""
    for done in Store(scene.results).runs():
        if done.finished > done.started:
            scene.notes["clock"] = "it was not stepped"


def _step_host(scene: Scene) -> None:
    file = scene.lab.clock(scene.target)
    file.write_text("-86400")
    scene.stack.callback(lambda: file.unlink(missing_ok=True))
    user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
    inside = ["nsenter", "-m", "-t", str(scene.target.init()), *user]
    there = float(run(*inside, "python3", "-c", "import time; print(time.time())"))
    if time.time() - there < 80_000:
        scene.notes["clock"] = "it was not stepped"


def _right_host_clock(scene: Scene) -> None:
    """Have the agent's clock be one that can be stepped."""
    scene.lab.clock(scene.target)


def _lower_nofile(scene: Scene) -> None:
    host = scene.target
    for pid in host.agents() + host.agents(workers=True):
        owner = os.stat(f"/proc/{pid}")
        user = ["setpriv", f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups"]
        run(*user, "prlimit", f"--pid={pid}", "--nofile=96:96")


ROOM_MIB, EATEN_MIB = 400, 700
"""Free memory that is left above the floor when a run starts, and what a stranger then takes."""

EATER = """
import sys, time
taken = bytearray(int(sys.argv[1]) << 20)
for place in range(0, len(taken), 4096):
    taken[place] = 1
print("taken", flush=True)
time.sleep(60)
"""


def _eat(scene: Scene) -> None:
    words = scene.target.enter("python3", "-c", EATER, str(EATEN_MIB))
    eater = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def end() -> None:
        eater.kill()
        eater.communicate(timeout=10)

    scene.stack.callback(end)
    assert eater.stdout
    eater.stdout.readline()


def _near_the_floor(scene: Scene) -> dict[str, object]:
    return {"memory_floor_mib": memory.Gauge().read().free // 1024 - ROOM_MIB}


MOST_STRAYS = {BEFORE: 2, "ramp": 2 * (64 + 1) + 2 * 16 + 2 * 500}
"""Connections that a stranger may get: one from each client that asks who it is; and in the ramp as
many as clients may be ahead of the servers (bench/run/strays.py), and two seconds' worth more."""


def _redirect(scene: Scene) -> None:
    """Lead the data port to a stranger, as a router or a rule of the host may do."""
    server = scene.lab.hosts[SERVER]
    stranger = Stranger(server, "0.0.0.0", 5077)
    most = MOST_STRAYS[BEFORE if scene.process is None else "ramp"]

    def end() -> None:
        server.mend()
        got = stranger.end()
        if got > most:
            scene.notes["stranger"] = f"{got} connections, expected at most {most}"

    scene.stack.callback(end)
    server.nft(
        "chain p { type nat hook prerouting priority -100; tcp dport 5000 redirect to :5077; }"
    )


def _shrink_tmp(scene: Scene) -> None:
    host = scene.target
    found = os.statvfs(host.root / "tmp")
    host.resize_tmp(max(4096, (found.f_blocks - found.f_bfree) * found.f_frsize))
    scene.stack.callback(lambda: host.resize_tmp(found.f_blocks * found.f_frsize))


TOLD_TO_END = r"^host {host}: the (server|client) agent ended unexpectedly"
SILENT = rf"^host {{host}}: (no word from the \w+ agent for {SILENCE} s|.*connection lost)"
STOPPED = rf"^host {{host}}: no word from the \w+ agent for {SILENCE} s"
UNHEARD = rf"^host \w+: .*no word from the controller for {SILENCE} s"
DIED = r"^host {host}: worker \d+ \(pid \d+\) died: signal "

FAULTS = (
    Fault(
        "controller SIGKILL",
        (CONTROLLER,),
        send(signal.SIGKILL, controller),
        every(NOBODY_LEFT),
    ),
    Fault(
        "controller SIGTERM",
        (CONTROLLER,),
        send(signal.SIGTERM, controller),
        every(INTERRUPTED),
    ),
    Fault("controller SIGINT", (CONTROLLER,), send(signal.SIGINT, controller), every(INTERRUPTED)),
    Fault("controller SIGHUP", (CONTROLLER,), send(signal.SIGHUP, controller), every(INTERRUPTED)),
    Fault(
        "controller SIGINT twice",
        (CONTROLLER,),
        _twice,
        every(
            Expect(
                frozenset({130}),
                "^interrupted twice; not cleaned up: .*host client1: the client agent /tmp/",
                KEPT,
                5,
            )
        ),
    ),
    Fault(
        "controller SIGSTOP",
        (CONTROLLER,),
        send(signal.SIGSTOP, controller),
        every(broken(UNHEARD, SILENCE + 20)),
        lasts=SILENCE + 3,
        alone=4,
        undo=send(signal.SIGCONT, controller),
    ),
    *(
        Fault(
            f"agent {number.name}",
            BOTH if number in (signal.SIGKILL, signal.SIGTERM) else CLIENTS[:1],
            send(number, agent),
            every(broken(TOLD_TO_END)),
        )
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    ),
    Fault(
        "agent SIGINT twice",
        CLIENTS[:1],
        lambda scene: [send(signal.SIGINT, agent)(scene) for _ in range(2)] and None,
        every(broken(TOLD_TO_END)),
    ),
    Fault(
        "agent SIGSTOP",
        BOTH,
        send(signal.SIGSTOP, agent),
        every(broken(STOPPED, LOST_SECONDS)),
    ),
    *(
        Fault(
            f"worker {number.name}",
            BOTH if number is signal.SIGKILL else CLIENTS[:1],
            send(number, worker),
            every(broken(DIED)),
        )
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
    ),
    Fault("worker SIGINT", CLIENTS[:1], send(signal.SIGINT, worker), every(PASSES)),
    Fault(
        "worker SIGSTOP",
        BOTH,
        send(signal.SIGSTOP, worker),
        every(broken(r"^host {host}: worker \d+ \(pid \d+\) was stopped: signal ")),
    ),
    Fault(
        "management cut",
        BOTH,
        lambda scene: scene.target.cut("management"),
        {
            BEFORE: Expect(
                frozenset({3}), r"^host {host}: 169\.254\.\d+\.\d+ port \d+: no answer", seconds=45
            ),
            **every(broken(SILENT, LOST_SECONDS)),
        },
        undo=lambda scene: scene.target.mend(),
        alone=SILENCE + 3,
    ),
    Fault(
        "data cut",
        BOTH,
        lambda scene: scene.target.cut("data"),
        {
            # Before or after the clients have asked every target who it is.
            "prepare": Expect(
                frozenset({1, 3}),
                r"^FAIL|^host client\d: .*198\.18\.",
                frozenset({"fail", "aborted"}),
                60,
            ),
            "ramp": FAILS,
            "hold": FAILS,
            # All has been counted by then; what its servers had to close is in the evidence.
            "drain": PASSES,
        },
        undo=lambda scene: scene.target.mend(),
    ),
    Fault(
        "powered off",
        BOTH,
        lambda scene: scene.target.power_off(),
        {
            BEFORE: Expect(
                frozenset({3}), r"^host {host}: 169\.254\.\d+\.\d+ port \d+: no answer", seconds=45
            ),
            **every(broken(SILENT, LOST_SECONDS)),
        },
    ),
    Fault(
        "disk full",
        (CONTROLLER,),
        _fill_results,
        every(broken(r"/results/.*: cannot be written: No space left on device")),
        setup=_disk,
    ),
    Fault(
        "disk full",
        CLIENTS[:1],
        _shrink_tmp,
        {
            BEFORE: Expect(frozenset({3}), r"^host {host}: .*No space left on device", seconds=30),
            **every(PASSES),
        },
    ),
    Fault("clock stepped", (CONTROLLER,), _step, every(PASSES), undo=_was_stepped, stepped=True),
    Fault("clock stepped", CLIENTS[:1], _step_host, every(PASSES), setup=_right_host_clock),
    Fault(
        "nofile lowered",
        BOTH,
        _lower_nofile,
        {"prepare": FAILS, "ramp": FAILS, "hold": PASSES, "drain": PASSES},
    ),
    Fault(
        "memory pressure",
        CLIENTS[:1],
        _eat,
        {"prepare": FAILS, "ramp": FAILS, "hold": PASSES, "drain": PASSES},
        settings=_near_the_floor,
    ),
    Fault(
        "data port redirected",
        (SERVER,),
        _redirect,
        {
            BEFORE: Expect(frozenset({3}), r"^host client\d: .*198\.18\.0\.1 port 5000 ", KEPT, 45),
            "ramp": broken(r"^the clients hold [\d,]+ connections more than the servers"),
        },
    ),
)
