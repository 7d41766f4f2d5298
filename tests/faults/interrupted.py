"""Interrupt the playbooks at each task that changes something, and see that nothing is lost by it.

``create`` and ``tune`` are ended in the middle, by Ctrl-C and by SIGKILL, and run again: they have
to come to their end. ``revert`` after a ``tune`` that was ended, and a ``revert`` that is ended and
run again, have to leave all machines as they were before the first ``tune``
(molecule/shared/unchanged.yml). After a ``destroy`` that is ended and run again nothing of the lab
is left.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hosts import HEARING, run
from labs import TOP, Playbooks

PLAYBOOKS = ("create", "tune", "revert", "destroy")
SIGNALS = (signal.SIGINT, signal.SIGKILL)
DELAYS = (0.0, 0.6)
"""Seconds into a task: as it begins, and while it is under way on the hosts."""

SHARED = TOP / "molecule" / "shared"
PLAY_SECONDS = 300.0
END_SECONDS = 30.0
"""For a playbook to end once it is interrupted."""


@dataclass
class Case:
    """One playbook, interrupted once."""

    playbook: str
    task: str
    number: signal.Signals
    delay: float
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        what = "FAIL" if self.failures else "ok  "
        why = f": {'; '.join(self.failures)}" if self.failures else ""
        return (
            f"{what} {self.playbook}, {self.number.name} {self.delay:g} s into "
            f"'{self.task}'{why} ({self.seconds:.0f} s)"
        )


class Play:
    """A playbook that is under way."""

    def __init__(self, lab: Playbooks, name: str) -> None:
        book = TOP / "playbooks" / f"{name}.yml"
        self.process = subprocess.Popen(
            [*HEARING, "ansible-playbook", str(book), *lab.extra],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=TOP,
            start_new_session=True,
        )
        self._timer = threading.Timer(PLAY_SECONDS, self.send, (signal.SIGKILL,))
        self._timer.start()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all its processes, as a terminal does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def lines(self) -> Iterator[str]:
        """What it prints."""
        assert self.process.stdout
        yield from self.process.stdout

    def close(self) -> None:
        """Wait for its end, which may be by force."""
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self.process.wait()
        self._timer.cancel()
        assert self.process.stdout
        self.process.stdout.close()


def tasks(lab: Playbooks, name: str) -> list[str]:
    """Run a playbook to its end; returns its tasks that change something.

    :raises RuntimeError: if it fails.
    """
    play, found, task, tail = Play(lab, name), [], "", ""
    for line in play.lines():
        tail = (tail + line)[-1000:]
        if match := re.match(r"TASK \[(.*)\] \*", line):
            task = match[1]
        elif line.startswith("changed:") and task not in found:
            found.append(task)
    play.close()
    if play.process.returncode:
        raise RuntimeError(f"{name}: {tail}")
    return found


def interrupt(lab: Playbooks, case: Case) -> None:
    """Run a playbook until a task, and end it there."""
    play = Play(lab, case.playbook)
    reached = False
    for line in play.lines():
        if not reached and line.startswith(f"TASK [{case.task}]"):
            reached = True
            time.sleep(case.delay)
            play.send(case.number)
    play.close()
    if not reached:
        case.failures.append("the task was not reached")


def unchanged(lab: Playbooks, case: Case) -> None:
    """See that all machines are as they were."""
    try:
        run("ansible-playbook", SHARED / "unchanged.yml", *lab.extra, seconds=PLAY_SECONDS)
    except RuntimeError as error:
        said = re.findall(r"(?:msg: |\[ERROR\]: ).*", str(error))
        case.failures.append(f"not as found: {' '.join(said)[:600]}")


def again(lab: Playbooks, case: Case, *names: str) -> None:
    """Run playbooks to their end."""
    for name in names:
        try:
            lab.play(name)
        except RuntimeError as error:
            said = re.findall(r"(?:msg: |\[ERROR\]: ).*", str(error))
            case.failures.append(f"{name} after it: {' '.join(said)[:600] or str(error)[:600]}")


def gone(lab: Playbooks, name: str) -> list[str]:
    """What is left of a lab that was destroyed."""
    spaces = re.findall(rf"^{re.escape(name)}-\S+", run("ip", "netns", "list"), re.MULTILINE)
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if f"/{name}/" in line]
    owner = Path(f"/run/connlab/{name}.owner")
    state = TOP / ".lab" / name
    return [*spaces, *mounts, *(str(path) for path in (owner, state) if path.exists())]


def drive(lab: Playbooks, name: str, case: Case) -> None:
    """One case; the lab is there and not tuned, before and after it."""
    began = time.monotonic()
    if case.playbook == "create":
        again(lab, case, "destroy")
        interrupt(lab, case)
        again(lab, case, "create")
    elif case.playbook == "tune":
        interrupt(lab, case)
        if case.number is signal.SIGINT:
            again(lab, case, "tune")
        again(lab, case, "revert")
        unchanged(lab, case)
    elif case.playbook == "revert":
        again(lab, case, "tune")
        interrupt(lab, case)
        again(lab, case, "revert")
        unchanged(lab, case)
    else:
        interrupt(lab, case)
        again(lab, case, "destroy")
        if left := gone(lab, name):
            case.failures.append(f"left: {', '.join(left)}")
        again(lab, case, "create")
    case.seconds = time.monotonic() - began


def cases(found: Sequence[tuple[str, str]], only: str) -> list[Case]:
    """All cases whose name matches."""
    every = [
        Case(book, task, number, delay)
        for book, task in found
        for number in SIGNALS
        for delay in DELAYS
    ]
    return [case for case in every if re.search(only, f"{case.playbook}, {case.task}")]


def wanted(only: str) -> bool:
    """Whether a pattern may mean cases of these: their tasks are known only by running them."""
    return not only or re.match(rf"\W*({'|'.join(PLAYBOOKS)})", only) is not None


def every(name: str, extra: Sequence[str], only: str) -> list[Case]:
    """Interrupt the playbooks of a lab, which is made for it and removed; returns what came of it.

    :param only: pattern of ``playbook, task``
    """
    lab = Playbooks(name, ["-i", str(TOP / "inventory" / "local"), *extra])
    done: list[Case] = []
    try:
        found = [("create", task) for task in tasks(lab, "create")]
        run("ansible-playbook", SHARED / "snapshot.yml", *lab.extra, seconds=PLAY_SECONDS)
        found += [(book, task) for book in ("tune", "revert") for task in tasks(lab, book)]
        found += [("destroy", task) for task in tasks(lab, "destroy")]
        lab.play("create")
        chosen = cases(found, only)
        for number, case in enumerate(chosen, start=1):
            drive(lab, name, case)
            done.append(case)
            print(f"[{number}/{len(chosen)}] {case}", flush=True)
    finally:
        lab.play("revert", "destroy")
        shutil.rmtree(TOP / ".lab" / f"{name}-before", ignore_errors=True)
    return done
