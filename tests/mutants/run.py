"""Put small faults into the code, one at a time, and see which of them the tests notice.

``python tests/mutants/run.py [--only PATTERN]``, as root. The faults stand in the tables beside
this file, one for each room. Every fault has a run of its tests to itself, in a copy of the tree,
with processes, network and mounts of its own, so that nothing is left of a fault that hangs or
leaks. Faults whose tests take longer than they do without a fault, by far, count as noticed.

Exit status: 0; 1 where too few are noticed, a dropped safety check is not, or one that is not
noticed has no reason in its table; 2 where a table does not fit the code any more.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml

TABLES = Path(__file__).parent
TREE = TABLES.parents[1]

SHARE = 0.9
"""Of the faults that have to be noticed."""

AT_A_TIME = 2

LONGEST = 3600.0
"""Seconds for all; what is not begun by then is not run, and named."""

FACTOR, ALLOWANCE, USUAL = 4.0, 30.0, 30.0
"""Seconds that the tests of a fault may take: a multiple of what they take without, and some. Whole
files of unit tests are taken to need so many, which is more than any does."""

OWN = ("/run/netns", "/run/lock", "/tmp")
"""Directories that each run of tests has for itself: named namespaces, locks, agents' homes."""

COPIES = "/var/tmp"

ISOLATED = (
    *("setpriv", "--pdeathsig", "KILL", "--"),
    "unshare",
    *("--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
    *("sh", "-c"),
    f"""set -e
    copy=$PWD
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/upper /mnt/work /mnt/root
    mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
    cd /mnt/root
    for each in proc sys dev; do mount --rbind /$each $each; done
    for each in {" ".join(OWN)}; do mkdir -p .$each; mount -t tmpfs tmpfs .$each; done
    pivot_root . mnt
    cd /
    umount -l /mnt
    ip link set lo up
    cd "$copy"
    "$@" || exit""",
    "sh",
)
"""A shell that is the first process of its own namespaces: all others end with it, and it ends
with the thread that has started it. What is written to the machine's own files is written to memory
(overlayfs), and is gone with it: a fault may have dropped the check that keeps a path inside its
directory."""

FIELDS = {"breaks", "old", "new", "nth", "safety", "tests", "survives"}


class BadTable(Exception):
    """A row that cannot be meant, or does not fit the code any more."""


@dataclass(frozen=True)
class Fault:
    """One small fault, as its table has it."""

    room: str
    file: str
    breaks: str
    """What goes wrong with it, in a few words."""
    old: str
    new: str
    nth: int | None
    """Which occurrence of ``old`` is meant, from 1; None where there is only one."""
    safety: bool
    """Whether it drops a check that keeps somebody from harm."""
    tests: str
    """Arguments of pytest."""
    survives: str
    """Why no test can be asked to notice it; empty where one has to."""

    def __str__(self) -> str:
        return f"{self.file}: {self.breaks}"

    def applied(self, source: str) -> str:
        """Return the source with the fault in it.

        Old text of one line is a part of one; of several lines, they are whole but for the end of
        the last, and all are indented as far as the first is there.

        :raises BadTable: if the old text is not there, or more often than the row says.
        """
        first, *rest = self.old.splitlines()
        pattern = re.escape(first)
        if rest:
            pattern = "".join([rf"^(?P<indent> *){pattern}", *map(_following, rest)])
        found = list(re.finditer(pattern, source, re.MULTILINE))
        if not found:
            raise BadTable(f"{self.room}.yml: {self}: the old text is not in the file any more")
        if self.nth is None and len(found) > 1:
            text = f"the old text is there {len(found)} times: give nth"
            raise BadTable(f"{self.room}.yml: {self}: {text}")
        nth = self.nth or 1
        if not 1 <= nth <= len(found):
            raise BadTable(f"{self.room}.yml: {self}: nth is {nth}, of {len(found)}")
        match = found[nth - 1]
        new = textwrap.indent(self.new, match["indent"]) if rest else self.new
        return source[: match.start()] + new + source[match.end() :]


def _following(line: str) -> str:
    """Return the pattern of a further line of old text."""
    return rf"\n(?P=indent){re.escape(line)}" if line else r"\n"


@dataclass
class Outcome:
    """What came of one fault."""

    fault: Fault
    noticed: bool
    by: str
    seconds: float


@dataclass
class Copy:
    """A copy of the tree that a fault is put into."""

    path: Path
    stamp: float = field(default_factory=time.time)

    @contextmanager
    def changed(self, fault: Fault) -> Iterator[None]:
        """Have the fault in the copy for as long as the block runs."""
        file = self.path / fault.file
        source = file.read_text(encoding="utf-8")
        self._write(file, fault.applied(source))
        try:
            yield
        finally:
            self._write(file, source)

    def _write(self, file: Path, source: str) -> None:
        """Write a file with a time of its own: Python takes a change within a second for none."""
        file.write_text(source, encoding="utf-8")
        self.stamp += 1
        os.utime(file, (self.stamp, self.stamp))


def faults(only: str = "") -> list[Fault]:
    """Return the rows of all tables that match a pattern, checked against the code.

    :raises BadTable: with a line on each that does not fit.
    """
    rows = [row for table in sorted(TABLES.glob("*.yml")) for row in _rows(table)]
    rows = [row for row in rows if re.search(only, str(row))]
    problems = []
    for row in rows:
        try:
            _check(row)
        except BadTable as error:
            problems.append(str(error))
    if problems:
        raise BadTable("\n".join(problems))
    return rows


def _rows(table: Path) -> Iterator[Fault]:
    for file, part in yaml.safe_load(table.read_text(encoding="utf-8")).items():
        for row in part["faults"]:
            breaks = row.get("breaks", row.get("old"))
            unknown = row.keys() - FIELDS
            if unknown or not {"breaks", "old", "new"} <= row.keys():
                raise BadTable(f"{table.name}: {file}: {breaks}: fields {sorted(row)}")
            yield Fault(
                table.stem,
                file,
                breaks,
                row["old"],
                row["new"],
                row.get("nth"),
                row.get("safety", False),
                " ".join(row.get("tests", part["tests"]).split()),
                " ".join(row.get("survives", "").split()),
            )


def _check(fault: Fault) -> None:
    path = TREE / fault.file
    if not path.is_file():
        raise BadTable(f"{fault.room}.yml: {fault}: there is no such file")
    changed = fault.applied(path.read_text(encoding="utf-8"))
    if path.suffix == ".py":
        try:
            compile(changed, fault.file, "exec")
        except SyntaxError as error:
            raise BadTable(f"{fault.room}.yml: {fault}: with it: {error}") from error
    for word in shlex.split(fault.tests):
        if word.startswith("tests/") and not (TREE / word.partition("::")[0]).is_file():
            raise BadTable(f"{fault.room}.yml: {fault}: there is no {word}")


def copied(to: Path) -> Copy:
    """Return a copy of what git knows of the tree, and of what it would know."""
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listed, cwd=TREE, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        source, target = TREE / name, to / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return Copy(to)


def tested(
    copy: Copy, tests: str, limit: float, children: set[subprocess.Popen[str]]
) -> tuple[int | None, str, float]:
    """Run tests in the copy; return their exit status, the first that failed, and seconds.

    The status is None where they did not end within ``limit``.

    :param children: has the process that runs them as long as it does
    """
    options = ("-x", "-q", "-p", "no:cacheprovider", "--tb=no", "--no-header")
    argv = (*ISOLATED, sys.executable, "-m", "pytest", *options, *shlex.split(tests))
    began = time.monotonic()
    with subprocess.Popen(
        argv,
        cwd=copy.path,
        # Plugins that no test here uses take as long to load as most of the tests take.
        env={**os.environ, "TMPDIR": "/tmp", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as child:
        children.add(child)
        try:
            text, _ = child.communicate(timeout=limit)
            status: int | None = child.returncode
        except subprocess.TimeoutExpired:
            child.kill()  # and with it, by --kill-child, all that it has started
            text, status = "", None
        finally:
            children.discard(child)
    found = re.search(r"^(?:FAILED|ERROR) (?:\S*/)?(\S+)", text, re.MULTILINE)
    last = text.strip().splitlines()[-1:] or [""]
    return status, found[1] if found else last[0], time.monotonic() - began


class Trial:
    """All faults of a run, two at a time."""

    def __init__(self, copies: Iterable[Copy], echo: Callable[[str], None]) -> None:
        self._copies: SimpleQueue[Copy] = SimpleQueue()
        for copy in copies:
            self._copies.put(copy)
        self._echo, self._ends = echo, time.monotonic() + LONGEST
        self._lock = threading.Lock()
        self._usual: dict[str, float] = {}
        self._children: set[subprocess.Popen[str]] = set()

    def sound(self, tests: str, own: bool) -> str:
        """Run tests without a fault; return what is wrong with them, or nothing.

        :param own: whether they are one fault's, and the time that they take counts
        """
        copy = self._copies.get()
        try:
            for _ in range(2):
                status, what, seconds = tested(copy, tests, 1200, self._children)
                if status == 0:
                    if own:
                        self._usual[tests] = seconds
                    return ""
        finally:
            self._copies.put(copy)
        return f"without any fault: pytest {tests}: exit status {status}: {what}"

    @contextmanager
    def ended(self, pool: ThreadPoolExecutor) -> Iterator[None]:
        """End what is under way if the block is left early."""
        try:
            yield
        except BaseException:
            self._ends = 0.0
            for child in list(self._children):
                child.kill()
            pool.shutdown(cancel_futures=True)
            raise

    def outcome(self, fault: Fault) -> Outcome | None:
        """Put one fault in and run its tests; None where there is no time left for it."""
        copy = self._copies.get()
        try:
            if time.monotonic() > self._ends:
                return None
            with copy.changed(fault):
                limit = self._usual.get(fault.tests, USUAL) * FACTOR + ALLOWANCE
                status, what, seconds = tested(copy, fault.tests, limit, self._children)
        finally:
            self._copies.put(copy)
        by = "no end" if status is None else what if status else ""
        outcome = Outcome(fault, status != 0, by, seconds)
        with self._lock:
            self._echo(_line(outcome))
        return outcome


def selections(chosen: Iterable[Fault]) -> tuple[list[str], list[str]]:
    """Return the selections of tests that need a run of their own, and files that can be joined."""
    own, files = [], []
    for tests in dict.fromkeys(fault.tests for fault in chosen):
        words = shlex.split(tests)
        if all(word.startswith("tests/unit/") for word in words):
            files += words
        else:
            own.append(tests)
    return own, sorted(set(files))


def _line(outcome: Outcome) -> str:
    mark = "noticed " if outcome.noticed else "SURVIVED"
    safety = " [safety]" if outcome.fault.safety else ""
    by = f": {outcome.by}" if outcome.by else ""
    return f"{mark} {outcome.seconds:5.1f} s  {outcome.fault}{safety}{by}"


def summary(outcomes: Sequence[Outcome], left: Sequence[Fault]) -> tuple[list[str], bool]:
    """Return the lines that say what came of all, and whether that is good enough."""
    rooms: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        rooms.setdefault(outcome.fault.room, []).append(outcome)
    lines = ["", f"{'room':<16} {'faults':>6} {'noticed':>8} {'safety':>7} {'noticed':>8}"]
    lines += [_row(room, mine) for room, mine in sorted(rooms.items())]
    lines.append(_row("in all", outcomes))
    problems = [f"not run, no time left: {fault}" for fault in left]
    for outcome in outcomes:
        fault = outcome.fault
        if outcome.noticed and fault.survives:
            lines.append(f"noticed, though its table has a reason why not: {fault}")
        if outcome.noticed:
            continue
        lines.append(f"survives: {fault}: {fault.survives or 'no reason given'}")
        if fault.safety:
            problems.append(f"a safety check can be dropped unnoticed: {fault}")
        if not fault.survives:
            problems.append(f"neither noticed nor explained: {fault}")
    noticed = sum(outcome.noticed for outcome in outcomes)
    if noticed < SHARE * len(outcomes):
        problems.append(f"{noticed} of {len(outcomes)} noticed, less than {SHARE:.0%}")
    return lines + problems, not problems


def _row(name: str, outcomes: Sequence[Outcome]) -> str:
    safety = [outcome for outcome in outcomes if outcome.fault.safety]
    counts = (
        len(outcomes),
        sum(outcome.noticed for outcome in outcomes),
        len(safety),
        sum(outcome.noticed for outcome in safety),
    )
    return "{:<16} {:>6} {:>8} {:>7} {:>8}".format(name, *counts)


def _say(line: str) -> None:
    print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run as the module says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="faults whose file and words match this")
    parser.add_argument("--check", action="store_true", help="see that the tables fit the code")
    options: Any = parser.parse_args(argv)
    try:
        chosen = faults(options.only)
    except BadTable as error:
        print(error, file=sys.stderr)
        return 2
    if not chosen:
        print(f"no fault matches {options.only!r}", file=sys.stderr)
        return 2
    if options.check:
        _say(f"{len(chosen)} faults, {sum(fault.safety for fault in chosen)} of them safety checks")
        return 0
    if any(path.is_relative_to("/tmp") for path in (TREE, Path(sys.prefix))):
        print("needs a checkout that is not below /tmp: tests have their own", file=sys.stderr)
        return 2
    for name in OWN:
        Path(name).mkdir(exist_ok=True)
    # So that a run that is ended removes its copies; what it has started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="mutants-", dir=COPIES) as folder:
        trial = Trial((copied(Path(folder, str(n))) for n in range(AT_A_TIME)), _say)
        with ThreadPoolExecutor(AT_A_TIME) as pool, trial.ended(pool):
            own, files = selections(chosen)
            halves = [" ".join(files[n::AT_A_TIME]) for n in range(AT_A_TIME)]
            runs = [(tests, False) for tests in halves if tests] + [(tests, True) for tests in own]
            unsound = list(filter(None, pool.map(lambda each: trial.sound(*each), runs)))
            if unsound:
                print("\n".join(unsound), file=sys.stderr)
                return 2
            _say(f"without a fault all tests pass; {len(chosen)} faults")
            results = list(pool.map(trial.outcome, chosen))
    outcomes = [result for result in results if result]
    left = [fault for fault, result in zip(chosen, results, strict=True) if not result]
    lines, good = summary(outcomes, left)
    _say("\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
