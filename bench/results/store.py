"""The directory that keeps the runs.

``results/<run-id>/`` holds ``run.json`` (:class:`~bench.results.format.Run`), ``samples.ndjson``
(one line per host and second), ``raw/<host>/<phase>/`` (the text that each source printed) and
``report.html``. ``results/latest`` links to the newest.

Part of what is written comes from hosts, so nothing may be written outside the run's directory:
names are path components that cannot lead elsewhere (:mod:`bench.names`), the names of texts come
from a closed list, and a link in the way is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from bench import files, names, wire
from bench.errors import ConnlabError, InputError, LabError
from bench.results.format import Run

RUN = "run.json"
PAGE = "report.html"

ROOM = 16 << 20
"""Bytes that must be free before a run begins, whatever its size. They are really allocated for a
moment, because the file system's figures do not show a quota."""

HOST_ROOM, TICK_ROOM, SPARE = 1 << 20, 1 << 10, 1 << 20
"""Bytes of a run for each host, for each second of each host, and for ``run.json``, which also
needs :data:`HOST_SPARE` for each host. Measured: 0.6 MB of texts per host in blocks of 4 KiB, 770 B
per sample, and 160 kB and 3.3 MB of ``run.json`` with 3 and 65 hosts. The space for ``run.json``
stays allocated until it is written."""

HOST_SPARE = 64 << 10

_RUN_ID = re.compile(r"\d{8}T\d{6}Z-.+")


@contextlib.contextmanager
def writing(what: object, error: type[ConnlabError] = LabError) -> Iterator[None]:
    """Turn an error of the disk into one line that names ``what``."""
    try:
        yield
    except OSError as refused:
        raise error(f"{what}: cannot be written: {_reason(refused)}") from refused


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def check(root: Path, size: int = ROOM) -> None:
    """Check that a run can be kept: the directory exists or can be created, and has room.

    :param size: bytes that must be free
    :raises InputError: in one line that names the directory
    """
    with writing(f"--results {root}", InputError):
        if root.exists() and not root.is_dir():
            raise InputError(f"--results {root}: is a file, expected a directory")
        root.mkdir(parents=True, exist_ok=True)
        _room(root, root, ROOM).release()
        free = _free(root)
    if free is not None and free < size:
        raise InputError(
            f"--results {root}: got {free >> 20:,} MiB free, expected {-(-size >> 20):,} MiB for "
            "this run"
        )


def _free(root: Path) -> int | None:
    """Return the bytes that this user can still write (statvfs(3)); None if they are not known."""
    found = os.statvfs(root)
    blocks = found.f_bavail if os.geteuid() else found.f_bfree
    return blocks * found.f_frsize if found.f_blocks else None


def _room(root: Path, folder: Path, size: int) -> files.Room:
    """Reserve room for a run below ``root``. :raises InputError: if there is none."""
    try:
        return files.Room(folder, size)
    except OSError as error:
        short_of = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        wanted = f", expected room for {ROOM >> 20} MiB" if short_of else ""
        raise InputError(
            f"--results {root}: cannot be written: {_reason(error)}{wanted}"
        ) from error


def new_folder(root: Path, name: str, now: datetime, size: int = ROOM) -> tuple[str, Path]:
    """Create a directory; return its name and path. Names begin with UTC time and sort by it.

    ``20260131T120000Z-million``; a second directory in the same second gets a suffix.

    :param size: bytes that must be free
    :raises InputError: if runs cannot be kept there
    """
    base = f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{name}"
    if not names.safe(base):
        raise InputError(f"name: got {name!r}, expected {names.EXPECTED}")
    check(root, size)
    made, number = base, 1
    with writing(f"--results {root}", InputError):
        while True:
            try:
                (root / made).mkdir()
                return made, root / made
            except FileExistsError:
                number += 1
                made = f"{base}-{number}"


class Samples:
    """Lines of ``samples.ndjson``."""

    def __init__(self, lines: files.Lines, path: Path) -> None:
        self._lines = lines
        self._path = path

    def write(self, text: str) -> None:
        """Add lines. :raises LabError: if the disk does not take them."""
        with writing(self._path):
            self._lines.write(text)


class Store:
    """The directory that keeps the runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._spare: dict[str, files.Room] = {}
        """Run id to the room for its run.json."""

    def create(
        self, scenario: str, now: datetime, hosts: int = 1, seconds: float = 0
    ) -> tuple[str, Path]:
        """Create a run; return its id and its directory, which has room for the run's files.

        :param seconds: the least time that the run will take
        :raises InputError: if the run cannot be kept there; nothing is left behind then
        """
        latest = self.root / "latest"
        if latest.is_dir() and not latest.is_symlink():
            raise InputError(f"--results {self.root}: latest: is a directory, expected a link")
        size = ROOM + hosts * (HOST_ROOM + int(seconds) * TICK_ROOM)
        run_id, folder = new_folder(self.root, scenario, now, size)
        try:
            self._spare[run_id] = _room(self.root, folder, SPARE + hosts * HOST_SPARE)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return run_id, folder

    def discard(self, run_id: str) -> None:
        """Remove the directory of a run that did not start."""
        self._release(run_id)
        if names.safe(run_id):
            shutil.rmtree(self.root / run_id, ignore_errors=True)

    def _release(self, run_id: str) -> None:
        spare = self._spare.pop(run_id, None)
        if spare is not None:
            spare.release()

    @contextlib.contextmanager
    def samples(self, run_id: str) -> Iterator[Samples]:
        """Open ``samples.ndjson`` of a run. :raises LabError: if it cannot be written."""
        name = "samples.ndjson"
        with contextlib.ExitStack() as stack:
            with writing(self.root / run_id / name):
                lines = stack.enter_context(files.Lines(self.root, (run_id,), name))
            yield Samples(lines, self.root / run_id / name)

    def write(self, run: Run) -> Path:
        """Write ``run.json`` and point ``latest`` to the run.

        If the disk has no room for all of it, keep the verdict and the counts.

        :raises LabError: if it could not be written completely
        """
        target = self.root / run.run_id / RUN
        self._release(run.run_id)
        with writing(target):
            try:
                self._write(run.run_id, RUN, _text(run))
            except OSError as refused:
                with contextlib.suppress(OSError):
                    self._write(run.run_id, RUN, _text(short(run, _reason(refused))))
                    self._point(run.run_id)
                raise
            self._point(run.run_id)
        return target

    def _write(self, run_id: str, name: str, text: str) -> None:
        files.write_inside(self.root, (run_id,), {name: text})

    def _point(self, run_id: str) -> None:
        link = self.root / f".latest.{os.getpid()}"
        link.unlink(missing_ok=True)
        try:
            link.symlink_to(run_id)
            os.replace(link, self.root / "latest")
        except BaseException:
            link.unlink(missing_ok=True)
            raise

    def write_page(self, run_id: str, page: str) -> None:
        """Write ``report.html``. :raises LabError: if it cannot be written."""
        with writing(self.root / run_id / PAGE):
            self._write(run_id, PAGE, page)

    def write_raw(self, run_id: str, host: str, phase: str, texts: Mapping[str, str]) -> None:
        """Write the texts of one host and phase as they were printed.

        :raises LabError: for a text that is not one of :data:`bench.wire.SOURCES` or is too long,
            and if the disk does not take the texts
        """
        for part in (host, phase):
            if not names.safe(part):
                raise LabError(f"evidence of {part!r}: expected a name: {names.EXPECTED}")
        for name, text in texts.items():
            if name not in wire.SOURCES:
                expected = ", ".join(wire.SOURCES)
                raise LabError(f"host {host}: evidence {name!r}: expected one of {expected}")
            if len(text) > wire.TEXT_BYTES:
                raise LabError(
                    f"host {host}: evidence {name}: got {len(text):,} characters, expected at "
                    f"most {wire.TEXT_BYTES:,}"
                )
        parts = (run_id, "raw", host, phase)
        with writing(self.root.joinpath(*parts)):
            files.write_inside(self.root, parts, texts)

    def find(self, run_id: str) -> str:
        """Return the name of a run's directory; ``latest`` is the target of the link of that name.

        :raises InputError: if that cannot be the name of a run, or is a link to elsewhere
        """
        name = run_id
        if run_id == "latest":
            with contextlib.suppress(OSError):
                name = os.readlink(self.root / run_id)
        folder = self.root / name
        if not names.safe(name) or folder.is_symlink() or not folder.is_dir():
            leads = "" if name == run_id else f", which leads to {name!r}"
            raise InputError(f"run: got {run_id!r}{leads}, expected a run in {self.root}")
        return name

    def load(self, run_id: str) -> Run:
        """Read a run.

        :raises InputError: if there is no run of that id, or its run.json is not valid
        """
        name = self.find(run_id)
        try:
            return Run.model_validate_json((self.root / name / RUN).read_bytes())
        except FileNotFoundError:
            raise InputError(
                f"run {name}: no run.json: the run is not over or was killed"
            ) from None
        except OSError as error:
            raise InputError(f"run {name}: run.json cannot be read: {_reason(error)}") from error
        except ValueError as error:
            first = str(error).splitlines()[0]
            raise InputError(f"run {name}: run.json cannot be read: {first}") from error

    def runs(
        self, unreadable: Callable[[str], None] = lambda line: None, *, newest_first: bool = False
    ) -> Iterator[Run]:
        """Yield all complete runs, oldest first.

        :param unreadable: called with a line for each run that cannot be read and is skipped
        """
        for folder in sorted(folders(self.root), reverse=newest_first):
            try:
                if os.path.lexists(folder / RUN) or _unfinished(folder):
                    yield self.load(folder.name)
            except InputError as error:
                unreadable(str(error))


def folders(root: Path) -> list[Path]:
    """Return the directories in a directory, without links; none if it does not exist.

    :raises InputError: if it exists and cannot be read
    """
    try:
        with os.scandir(root) as entries:
            return [Path(one.path) for one in entries if one.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"--results {root}: cannot be read: {_reason(error)}") from error


def _unfinished(folder: Path) -> bool:
    """Return whether a directory belongs to an unfinished run, and not to a claim or to another
    program."""
    return bool(_RUN_ID.fullmatch(folder.name)) and not os.path.lexists(folder / "claim.json")


def short(run: Run, why: str) -> Run:
    """Return a run without its large parts.

    Counts, settings and the curve's point with the most connections stay, and the reason says why
    the rest is missing.
    """
    return run.model_copy(
        update={
            "verdict": "aborted",
            "reason": f"{RUN} is shortened: {why}; {run.verdict}: {run.reason}",
            "curve": sorted(run.curve, key=lambda point: point.held)[-1:],
            "hosts": {},
            "packages": {},
            "image": {},
        }
    )


def _text(run: Run) -> str:
    return run.model_dump_json(by_alias=True, indent=1) + "\n"
