"""Put every fault into every phase of a run on a lab of the playbooks, and show what came of it.

usage: PYTHONPATH=. python tests/faults/matrix.py LAB [-e NAME=VALUE] [--only PATTERN]
       [--results FILE]

A lab of that name is made, harmed, and removed. Each case is one line as it ends; then comes the
table of faults by phases, which is also written to FILE. After that the lab's playbooks are
interrupted themselves (:mod:`interrupted`). PATTERN is one of "fault, host, phase", or of
"playbook, task". Exit status 1 if anything was not as it has to be, 2 if no case matches.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import interrupted
from driver import BEFORE, PHASES, Fault, Row, drive
from labs import Playbooks
from table import FAULTS

COLUMNS = (BEFORE, *PHASES)


def cases(only: str) -> list[tuple[Fault, str, str]]:
    """Fault, host and phase of each case whose name matches."""
    return [
        (fault, on, phase)
        for fault in FAULTS
        for on in fault.on
        for phase in COLUMNS
        if phase in fault.expects and re.search(only, f"{fault.name}, {on}, {phase}")
    ]


def line(row: Row) -> str:
    """One case in one line."""
    times = ", ".join(
        f"{what} {seconds:.1f} s"
        for what, seconds in (("said", row.said), ("told", row.told), ("ended", row.ended))
        if seconds is not None
    )
    what = "ok  " if not row.failures else "FAIL"
    why = f"; {'; '.join(row.failures)}" if row.failures else ""
    said = f": {row.line}" if row.line else ""
    return f"{what} {row.fault}, {row.on}, {row.phase}: exit {row.exit}, {times}{said}{why}"


def table(rows: Sequence[Row]) -> str:
    """All cases as Markdown: faults by phases, and below it what has failed."""
    found = {(row.fault, row.on, row.phase): row for row in rows}
    lines = [
        "Seconds from the fault to the first word of it, and to the end of the run; `ok` where all",
        "checks hold: bound, exit status, line, evidence, nothing left, the next run passes.",
        "",
        f"| fault | on | {' | '.join(COLUMNS)} |",
        "|" + "---|" * (len(COLUMNS) + 2),
    ]
    for fault, on in dict.fromkeys((row.fault, row.on) for row in rows):
        cells = [_cell(found.get((fault, on, phase))) for phase in COLUMNS]
        lines.append(f"| {fault} | {on} | {' | '.join(cells)} |")
    bad = [row for row in rows if row.failures]
    lines += ["", f"{len(rows)} cases, {len(rows) - len(bad)} ok."]
    lines += ["", *(f"- {line(row)}" for row in bad)] if bad else []
    return "\n".join(lines) + "\n"


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    times = [f"{seconds:.1f}" for seconds in (row.said, row.ended) if seconds is not None]
    return f"{'ok' if not row.failures else '**FAIL**'} {' / '.join(times)}"


def every(lab: Playbooks, chosen: Sequence[tuple[Fault, str, str]]) -> list[Row]:
    """Run the cases on a lab that is made for them; it is there afterwards."""
    rows: list[Row] = []
    lab.play("create", "tune")
    with tempfile.TemporaryDirectory(prefix="faults.") as folder:
        lab.list(Path(folder))
        for number, (fault, on, phase) in enumerate(chosen, start=1):
            last = number == len(chosen) or chosen[number][:2] != (fault, on)
            rows.append(drive(lab, fault, on, phase, Path(folder) / "case", then=last))
            print(f"[{number}/{len(chosen)}] {line(rows[-1])} ({rows[-1].took} s)", flush=True)
    return rows


def main() -> int:
    """Run the cases; returns the exit status."""
    parser = argparse.ArgumentParser(description="Faults by phases of a run.")
    parser.add_argument("lab", help="name of the lab that is made for it")
    parser.add_argument("-e", action="append", default=[], help="for the playbooks")
    parser.add_argument("--only", default="", help="pattern of the cases to run")
    parser.add_argument("--results", type=Path, help="file for the table")
    given = parser.parse_args()
    chosen, playbooks = cases(given.only), interrupted.wanted(given.only)
    if not chosen and not playbooks:
        parser.error(f"--only: got {given.only!r}, expected a pattern that a case matches")
    extra = [part for text in (f"lab_name={given.lab}", *given.e) for part in ("-e", text)]
    began = time.monotonic()
    rows: list[Row] = []
    if chosen:
        lab = Playbooks(given.lab, extra)
        try:
            rows = every(lab, chosen)
        finally:
            lab.play("revert", "destroy")
    broken = interrupted.every(given.lab, extra, given.only) if playbooks else []
    text = table(rows) if rows else ""
    if broken:
        good = sum(not case.failures for case in broken)
        text += f"\n{len(broken)} interruptions of playbooks, {good} ok.\n\n"
        text += "".join(f"- {case}\n" for case in broken)
    print(f"\n{text}\n{time.monotonic() - began:.0f} s", flush=True)
    if given.results:
        given.results.parent.mkdir(parents=True, exist_ok=True)
        given.results.write_text(text)
    return int(any(case.failures for case in (*rows, *broken)))


if __name__ == "__main__":
    sys.exit(main())
