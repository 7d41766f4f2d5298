"""One run with one fault in it: started, harmed in the wanted phase, and looked at afterwards.

The run is ``python -m bench run`` in a process of its own, over real SSH to real hosts. Whatever
the fault, the same is looked at (:func:`check`): that it ends in time, with the right exit status,
in one line, with evidence that can be read; that nothing of it is left on any host; and that the
next run passes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hosts import HEARING, Host, until
from labs import CLOCK, TOP, Lab

from bench.errors import ConnlabError
from bench.results.store import Store

PHASES = ("prepare", "ramp", "hold", "drain")
BEFORE = "before"
"""Not a phase of a run: what is so already when it starts."""

SILENCE = 6
"""Seconds of silence after which either side takes the other for dead: the least there is."""

SETTINGS: Mapping[str, object] = {
    "connections": 1500,
    "connect_rate": 500,
    "hold_seconds": 2.5,
    "drain_rate": 500,
    "silence_seconds": SILENCE,
    "memory_floor_mib": 64,
    "liveness_sample": 100,
    "connect_timeout_ms": 1000,
    "retries": 1,
    "ramp_timeout_seconds": 20,
    "echo_timeout_ms": 2000,
    "backlog": 64,
    "max_in_flight": 16,
}
"""Of a run that takes some 3 s for each of its phases."""

NEXT = {**SETTINGS, "connections": 100, "connect_rate": 100_000, "hold_seconds": 0, "drain_rate": 0}
"""Of the run after it, which has to pass."""

PHASE_SECONDS = 60.0
"""For a run to come to a phase, on a busy machine."""

SETTLE_SECONDS = 5.0
"""For a host to have nothing of a run left, once its agents are to end."""

NEXT_SECONDS = 90.0


@dataclass(frozen=True)
class Expect:
    """How a run may end."""

    exits: frozenset[int]
    line: str = ""
    """Pattern of the one line that says why; ``{host}`` in it is the host that was harmed. Empty:
    nobody is left to say one."""
    verdicts: frozenset[str] = frozenset()
    """What run.json may say; empty: there is none."""
    seconds: float = 15.0
    """From the fault to the end of the process."""


@dataclass
class Scene:
    """What a fault is put into."""

    lab: Lab
    host: Host | None
    """The host that is harmed; None: it is the controller."""
    folder: Path
    """The run's own: results and what the fault needs."""
    process: subprocess.Popen[str] | None = None
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """What the fault has opened, closed when the run has ended."""
    notes: dict[str, str] = field(default_factory=dict)
    """Findings of a fault's own, of which the checker makes failures."""

    @property
    def controller(self) -> int:
        assert self.process
        return self.process.pid

    @property
    def target(self) -> Host:
        assert self.host
        return self.host

    @property
    def results(self) -> Path:
        return self.folder / "results"


def nothing(scene: Scene) -> None:
    """Do nothing."""


def no_settings(scene: Scene) -> dict[str, object]:
    """No setting of its own."""
    return {}


@dataclass(frozen=True)
class Fault:
    """One row of the table: what is done, to whom, and what has to come of it."""

    name: str
    on: tuple[str, ...]
    inject: Callable[[Scene], None]
    expects: Mapping[str, Expect]
    """By phase; those in which the fault is put in."""
    setup: Callable[[Scene], None] = nothing
    """Before the run starts."""
    undo: Callable[[Scene], None] = nothing
    """When the run has ended, or after ``lasts``."""
    lasts: float | None = None
    """Seconds after which it is undone while the run goes on."""
    settings: Callable[[Scene], dict[str, object]] = no_settings
    stepped: bool = False
    """Whether the controller's clock is to be one that can be stepped."""
    alone: float = 0.0
    """Seconds that a host which is cut off or left alone may take to be clean."""


@dataclass
class Row:
    """What came of one fault in one phase."""

    fault: str
    on: str
    phase: str
    exit: int | None = None
    line: str = ""
    said: float | None = None
    """Seconds from the fault to the first word of it."""
    told: float | None = None
    """Seconds to the line that ends the run."""
    ended: float | None = None
    """Seconds to the end of the process."""
    failures: list[str] = field(default_factory=list)
    took: float = 0.0


class Run:
    """A controller in a process of its own."""

    def __init__(self, scene: Scene, settings: Mapping[str, object], stepped: bool = False) -> None:
        options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        words = [sys.executable, "-m", "bench", "run", "million", *scene.lab.inventory()]
        words += ["--progress", "ndjson", "--results", str(scene.results), *options]
        environment = {**os.environ, "PYTHONPATH": str(TOP)}
        if stepped:
            environment["PYTHONPATH"] = f"{CLOCK}:{TOP}"
            environment["CONNLAB_CLOCK"] = str(scene.folder / "clock")
        self.errors = scene.folder / "stderr"
        with self.errors.open("a") as errors:
            self.process = subprocess.Popen(
                [*HEARING, *scene.lab.controller(*words)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=TOP,
                env=environment,
                start_new_session=True,
            )
        self.events: list[tuple[float, Mapping[str, object]]] = []
        self.strange: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            try:
                self.events.append((time.monotonic(), json.loads(line)))
            except ValueError:
                self.strange.append(line)

    def phase(self, name: str) -> bool:
        """Whether it has come to a phase."""
        return any(
            event["event"] == "progress"
            and event["phase"] == name
            and not event["note"]
            and (name != "ramp" or event["held"])
            for _, event in list(self.events)
        )

    def over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def end(self, seconds: float) -> bool:
        """Whether it ends by itself in time; it has ended afterwards."""
        try:
            self.process.wait(max(0.0, seconds))
            return True
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            return False
        finally:
            self._reader.join(5)
            if self.process.stdout and not self._reader.is_alive():
                self.process.stdout.close()


def drive(lab: Lab, fault: Fault, on: str, phase: str, folder: Path, *, then: bool = True) -> Row:
    """Put one fault into one run; returns what came of it.

    :param then: whether a whole run follows at once, that has to pass. Where it does not, the next
        case's own run follows, on the same hosts, and has to come to its phase.
    """
    row = Row(fault.name, on, phase)
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    scene = Scene(lab, lab.hosts.get(on), folder)
    before = {name: host.state() for name, host in lab.hosts.items()}
    expect = fault.expects[phase]
    try:
        with scene.stack:
            fault.setup(scene)
            settings = {**SETTINGS, **fault.settings(scene)}
            if phase == BEFORE:
                fault.inject(scene)
            harmed = time.monotonic()
            run = Run(scene, settings, fault.stepped)
            scene.process = run.process
            try:
                if phase != BEFORE:
                    _await(run, lab, phase)
                    harmed = time.monotonic()
                    fault.inject(scene)
                if fault.lasts is not None:
                    _stay(run, scene, fault, row)
                if not run.end(harmed + expect.seconds - time.monotonic()):
                    row.failures.append(f"has not ended after {expect.seconds:.0f} s")
                row.ended = round(time.monotonic() - harmed, 1)
            finally:
                run.end(0)
            if fault.alone:  # left alone it cleans up by itself; only then is it back
                _clean(scene, row, fault.alone)
            fault.undo(scene)
            _judge(run, scene, row, expect, harmed)
            row.failures += [f"{what}: {found}" for what, found in scene.notes.items()]
        _clean(scene, row, SETTLE_SECONDS)
        _unchanged(scene, row, before)
        if then:
            _next(scene, row)
    except Exception as error:
        row.failures.append(f"{type(error).__name__}: {error}")
    finally:
        for host in lab.hosts.values():
            lab.heal(host)
    row.took = round(time.monotonic() - began, 1)
    return row


def _await(run: Run, lab: Lab, phase: str) -> None:
    """Wait for a phase. Preparing begins when all agents have workers to be."""

    def there() -> bool:
        if run.over():
            return True
        if phase == "prepare":
            return all(host.agents(workers=True) for host in lab.hosts.values())
        return run.phase(phase)

    if not until(there, PHASE_SECONDS) or run.over():
        said = run.events[-1][1] if run.events else run.errors.read_text()[-300:]
        raise RuntimeError(f"the run did not come to {phase}: {said}")


def _stay(run: Run, scene: Scene, fault: Fault, row: Row) -> None:
    """Let the fault last for its time, in which hosts have to be clean by themselves."""
    assert fault.lasts is not None
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.process.wait(fault.lasts)
    if fault.alone:
        _clean(scene, row, fault.alone)
    fault.undo(scene)


def _judge(run: Run, scene: Scene, row: Row, expect: Expect, harmed: float) -> None:
    """Exit status, line and evidence."""
    row.exit = run.process.returncode
    if row.exit not in expect.exits:
        row.failures.append(f"exit {row.exit}, expected {sorted(expect.exits)}")
    for when, event in run.events:
        note = str(event.get("note", ""))
        if when > harmed and note.startswith("no word from") and row.said is None:
            row.said = round(when - harmed, 1)
        if event["event"] in ("error", "result"):
            row.told = row.told or round(when - harmed, 1)
            row.line = str(event.get("message") or _first(event["summary"]))
    row.said = row.said if row.said is not None else row.told
    lines = [event for _, event in run.events if event["event"] in ("error", "result")]
    pattern = expect.line.replace("{host}", re.escape(row.on))
    if bool(lines) != bool(pattern) or (pattern and not re.search(pattern, row.line)):
        row.failures.append(f"said {row.line!r}, expected {pattern!r}")
    errors = run.errors.read_text()
    if errors.strip() or run.strange:
        row.failures.append(f"also printed {(errors + ''.join(run.strange))[-300:]!r}")
    _evidence(scene.results, row, expect)


def _first(summary: object) -> str:
    """The first line of a summary, and those that it goes on in."""
    assert isinstance(summary, list)
    more = itertools.takewhile(lambda line: line.startswith("  "), summary[1:])
    return " ".join([summary[0], *(line.strip() for line in more)])


def _evidence(results: Path, row: Row, expect: Expect) -> None:
    """What is kept of the run."""
    unreadable: list[str] = []
    try:
        kept = list(Store(results).runs(unreadable.append))
    except ConnlabError as error:
        row.failures.append(f"evidence: {error}")
        return
    verdicts = {run.verdict for run in kept}
    if verdicts - expect.verdicts or (expect.verdicts and not verdicts):
        row.failures.append(f"verdict {sorted(verdicts)}, expected {sorted(expect.verdicts)}")
    if unreadable and expect.verdicts:
        row.failures.append(f"evidence: {unreadable}")
    for run in kept:
        if not run.reason:
            row.failures.append("evidence: no reason")
    for path in results.rglob("*"):
        if path.name.startswith(".") and path.name != ".":
            row.failures.append(f"evidence: {path.name} is left")
    for path in results.rglob("samples.ndjson"):
        try:
            for line in path.read_text().splitlines():
                json.loads(line)
        except ValueError as error:
            row.failures.append(f"evidence: {path.name}: {error}")


def _clean(scene: Scene, row: Row, seconds: float) -> None:
    """Nothing of a run is on any host."""

    def left() -> dict[str, dict[str, list[str]]]:
        return {name: found for name, host in scene.lab.hosts.items() if (found := host.left())}

    if not until(lambda: not left(), seconds, 0.1):
        for name, found in left().items():
            for kind, entries in found.items():
                row.failures.append(f"{kind} left on {name}: {', '.join(entries[:3])}")


def _unchanged(scene: Scene, row: Row, before: Mapping[str, Mapping[str, str]]) -> None:
    for name, host in scene.lab.hosts.items():
        if host.init() is None:
            continue
        after = host.state()
        for key in sorted({*before[name], *after}):
            if before[name].get(key) != after.get(key):
                row.failures.append(f"{name}: {key} was {before[name].get(key)!r}")


def _next(scene: Scene, row: Row) -> None:
    """The next run passes, without anything being repaired but what was harmed itself."""
    for host in scene.lab.hosts.values():
        scene.lab.heal(host)
    wrong = passes(scene.lab, scene.folder / "next")
    row.failures += [f"the next run: {wrong}"] if wrong else []


def passes(lab: Lab, folder: Path) -> str:
    """What is wrong with a run without a fault; empty if nothing is."""
    folder.mkdir(parents=True)
    run = Run(Scene(lab, None, folder), NEXT)
    if run.end(NEXT_SECONDS) and run.process.returncode == 0:
        return ""
    said = run.events[-1][1] if run.events else run.errors.read_text()[-300:]
    return f"exit {run.process.returncode}, {said}"
