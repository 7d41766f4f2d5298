"""A guard's journal: what it is about to change on its host, and the undo if the guard is killed.

A guard that is killed undoes nothing. So each guard keeps a journal, a file in :data:`FOLDER` that
only root can read. The guard holds a lock on it (flock(2)) while it lives, and writes a line to
disk before each change. A journal that no process locks belongs to a guard that is gone, and
:func:`heal` undoes its changes, the latest first.

Undoing is three-way. A setting that is as the guard set it goes back to the value found before. A
setting that is as it was found stays. Any other value belongs to someone else by now; it is kept
and reported.

Kernel parameters and nftables tables are restored only in the same boot and network namespace,
files in any boot. Lines are checked as a guard checks its steps: root acts on nothing else.

This file uses the standard library and nothing of this package: the role ``guard`` sends it by
itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = "/var/lib/connlab-guard"
"""Directory of the journals, root's only. It is on disk, because files that guards make outlive a
boot."""

RUN = "/run"
"""Directory of the guards' locks (:mod:`bench.agent.trials.locks`)."""

ROOT = 0
"""The user whose files are trusted."""

KEYS = re.compile(
    r"net\.(ipv4|ipv6|core|netfilter)(\.[a-z0-9_-]+)+\Z"
    r"|fs\.(file-max|nr_open|epoll\.max_user_watches)\Z"
)
"""Kernel parameters that may be changed: those that experiments are about."""

VALUE = re.compile(r"[\t -~]{0,65536}\Z")
"""A value of a kernel parameter: one line of ASCII. The longest values are lists of ports."""

PIECE = 1 << 17
"""Bytes to read at a time: a list of ports must be read in one call, or it is cut short
(proc_do_large_bitmap() of kernel/sysctl.c, 5.10 to 6.18, returns nothing at an offset)."""

LIMITS = "/etc/security/limits.d/"
"""Where files may be created: pam_limits(8) reads them at each login."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")
"""Name of a file there."""

TABLE = re.compile(r"(ip|ip6|inet) connlab_[a-z_]+\Z")
"""nftables tables that may be created (nft(8)): family and name."""

TOKEN = re.compile(r"[0-9a-f]{16}\Z")
"""Token of a guard: it is in the name of its journal, of the chain that marks its tables, and of
its unfinished files."""

SIZE = 1 << 20
"""The most bytes of a journal: a thousand times those of any experiment."""

PATIENCE = 10.0
"""Seconds that others may hold the folder: as long as healing takes."""

NFT_SECONDS = 5.0
"""Seconds for nft(8): it waits for other changes of the rules."""

BOOT_SECONDS = 2
"""Seconds by which the time of one boot may differ between two looks; a boot takes longer."""

SO_NETNS_COOKIE = 71
"""include/uapi/asm-generic/socket.h, Linux 5.14: a number that no later namespace gets."""


class Damaged(OSError):
    """A journal that no guard has written: one line with its path and the reason."""


class Refused(ValueError):
    """A change that must not be made, because no guard would undo it: one line."""


class Kept(Exception):
    """A setting that is not as the guard set it, and so belongs to someone else: one line."""


class Change(NamedTuple):
    """One change: a kernel parameter, a table or a file."""

    kind: str
    """``sysctl``, ``table`` or ``file``."""
    name: str
    """The parameter, ``family name``, or the path."""
    found: str = ""
    """A parameter's value before."""
    set: str = ""
    """A parameter's new value; the SHA-256 of a file's text."""
    at: int = 0
    """When it was written down, nanoseconds of CLOCK_BOOTTIME."""

    @property
    def of_network(self) -> bool:
        """Whether it belongs to one network namespace, not to the kernel or the file system."""
        return self.kind == "table" or self.name.startswith("net.")


class Outcome(NamedTuple):
    """The outcome of healing, in words."""

    healed: list[str]
    """What was undone."""
    kept: list[str]
    """What others have changed since: it stays as it is."""
    failed: list[str]
    """What could not be undone: its journal stays."""


class Journal:
    """The journal of one guard."""

    def __init__(self, owner: str = "") -> None:
        """Start without a file.

        :param owner: the controller, for a reader of the journal
        """
        self._owner = owner
        self._number = -1
        self.token = ""
        """Token of this guard while the journal is open."""

    def note(self, change: Change) -> Change:
        """Write a change to disk before it is made.

        :raises Refused: if healing would refuse the change.
        :raises OSError: if it cannot be written. In either case the change must not be made.
        """
        if not permitted(change):
            raise Refused(_why_not(change))
        timed = change._replace(at=time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        if self._number < 0:
            self._open()
        if os.fstat(self._number).st_size + len(_line(timed._asdict())) > SIZE:
            raise Refused(f"{change.kind} {change.name}: more than {SIZE} bytes of changes")
        _append(self._number, timed._asdict())
        return timed

    def _open(self) -> None:
        with _held_folder(make=True):
            token = secrets.token_hex(8)
            number = os.open(
                f"{FOLDER}/{token}.journal",
                os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW,
                0o600,
            )
            fcntl.flock(number, fcntl.LOCK_EX)
            self._number, self.token = number, token
            _append(number, _head(self._owner, token))
            _sync_folder()

    def close(self) -> None:
        """Remove the journal: everything is undone."""
        if self._number < 0:
            return
        number, self._number = self._number, -1
        with contextlib.suppress(OSError), _held_folder(make=False):
            os.unlink(f"{FOLDER}/{self.token}.journal")
        os.close(number)

    def abandon(self) -> None:
        """Leave the journal for the next guard to heal: not everything is undone."""
        if self._number >= 0:
            os.close(self._number)
            self._number = -1


class _Notes(NamedTuple):
    """A journal that has been read."""

    path: str
    head: dict[str, Any]
    changes: list[Change]


def heal(write: bool = True) -> Outcome:
    """Undo what dead guards have left; without ``write``, report what would be undone.

    :raises Damaged: if a journal is not as a guard writes it; nothing has been changed then.
    :raises OSError: if the folder cannot be read, or others hold it for too long.
    """
    outcome = Outcome([], [], [])
    with _held_folder(make=False) as there:
        if not there:
            return outcome
        journals, busy = _orphans()
        left = _undo_all(journals, busy, outcome, write)
        for notes in journals if write else []:
            _keep(notes, left[notes.path])
    if write:
        _sweep_locks()
    return outcome


def _undo_all(
    journals: list[_Notes], busy: dict[str, int], outcome: Outcome, write: bool
) -> dict[str, list[Change]]:
    """Undo changes, the latest first; return those that are still to be undone, by journal."""
    net = network()
    left: dict[str, list[Change]] = {notes.path: [] for notes in journals}
    pairs = [(change, notes) for notes in journals for change in notes.changes]
    for change, notes in sorted(pairs, key=lambda pair: pair[0].at, reverse=True):
        same = True if change.kind == "file" else _same_boot(notes.head, change.at)
        if same is False:
            continue  # it ended with that boot
        elsewhere = change.of_network and notes.head["net"] != net
        if elsewhere or change.at < busy.get(change.name, 0):
            left[notes.path].append(change)
            continue
        try:
            if same is None and change.kind == "sysctl":
                _look(change)
            elif undo(change, notes.head["token"], write):
                outcome.healed.append(f"{change.kind} {change.name}")
        except Kept as reason:
            outcome.kept.append(str(reason))
        except OSError as error:
            outcome.failed.append(f"{change.kind} {change.name}: {error.strerror or error}")
            left[notes.path].append(change)
    return left


def _look(change: Change) -> None:
    """Check that a value is as it was found, if it may be of another boot.

    :raises Kept: if it is not. That boot's own settings may have set it for other reasons.
    """
    if _undo_sysctl(change, "", write=False):
        raise Kept(
            f"sysctl {change.name}: {' '.join(change.set.split())}, as an experiment set it in "
            f"this boot or an earlier one, {' '.join(change.found.split())} before that: kept"
        )


def undo(change: Change, token: str, write: bool = True) -> bool:
    """Undo one change; return whether there was something to undo.

    :raises Kept: if it is neither as the guard set it nor as it was found.
    :raises OSError: if it cannot be undone.
    """
    return {"sysctl": _undo_sysctl, "table": _undo_table, "file": _undo_file}[change.kind](
        change, token, write
    )


def _undo_sysctl(change: Change, _: str, write: bool) -> bool:
    path = sysctl_path(change.name)
    try:
        now = _read(path).split()
    except FileNotFoundError:
        return False  # its module was unloaded, and the value is gone with it
    if now == change.found.split():
        return False
    if now != change.set.split():
        raise Kept(
            f"sysctl {change.name}: expected {' '.join(change.set.split())}, as an experiment set "
            f"it, found {' '.join(now)}: kept"
        )
    if write:
        with open(path, "w", encoding="ascii") as file:
            file.write(change.found + "\n")
        now = _read(path).split()
        if now != change.found.split():
            raise OSError(f"{' '.join(now)} after a write of {change.found}")
    return True


def _undo_table(change: Change, token: str, write: bool) -> bool:
    if f"table {change.name}" not in nft("list", "tables").splitlines():
        return False
    try:
        nft("list", "chain", *change.name.split(), mark(token))
    except OSError:
        raise Kept(
            f"table {change.name}: without the mark of the guard that made it: kept"
        ) from None
    if write:
        remove_table(change.name, token)
    return True


def _undo_file(change: Change, token: str, write: bool) -> bool:
    unfinished = unfinished_file(token)
    if write:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
    try:
        number = os.open(change.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise Kept(f"file {change.name}: a link since: kept") from None
    try:
        regular = stat.S_ISREG(os.fstat(number).st_mode)
        ours = regular and digest(os.pread(number, SIZE + 1, 0)) == change.set
    finally:
        os.close(number)
    if not ours:
        raise Kept(f"file {change.name}: changed since an experiment made it: kept")
    if write:
        os.unlink(change.name)
    return True


def make_file(path: str, text: bytes, token: str) -> None:
    """Create a file that does not exist yet, whole or not at all.

    :raises OSError: if it exists, or cannot be written.
    """
    unfinished = unfinished_file(token)
    number = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        with open(number, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(number)
        os.link(unfinished, path)
    finally:
        os.unlink(unfinished)


def unfinished_file(token: str) -> str:
    """Return the path of a file that is being written; pam_limits(8) ignores such a name."""
    return f"{LIMITS}.connlab-{token}"


def make_table(name: str, body: str, token: str) -> None:
    """Create an nftables table with the guard's mark.

    :raises OSError: if it exists, or nft fails.
    """
    nft(
        "-f",
        "-",
        text=f"create table {name}\ntable {name} {{\nchain {mark(token)} {{ }}\n{body}\n}}\n",
    )


def remove_table(name: str, token: str) -> None:
    """Remove a table with the guard's mark, in one transaction. :raises OSError: if it has none."""
    nft(f"delete chain {name} {mark(token)}; delete table {name}")


def mark(token: str) -> str:
    """Return the name of the chain that marks a table as a guard's.

    The chain has no rules, and nothing calls it.
    """
    return f"guard_{token}"


def nft(*words: str, text: str = "") -> str:
    """Return what nft(8) prints.

    :raises OSError: with its first line, if it fails or takes too long.
    """
    path = shutil.which("nft", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not path:
        raise OSError("nft is not installed")
    try:
        done = subprocess.run(
            [path, *words],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=NFT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"nft: no answer within {NFT_SECONDS:g} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise OSError(f"nft: {said[0]}")
    return done.stdout


def digest(text: bytes) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text).hexdigest()


def sysctl_path(key: str) -> str:
    """Return the path of a kernel parameter of :data:`KEYS`, which has no slash in it."""
    return "/proc/sys/" + key.replace(".", "/")


def boot_id() -> str:
    """Return the identity of this boot (random(4))."""
    return _read("/proc/sys/kernel/random/boot_id").strip()


def booted() -> int:
    """Return when the kernel booted, seconds since 1970 (proc_stat(5) btime).

    Setting the clock changes this time.
    """
    rows = _read("/proc/stat").splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("btime "))


def _same_boot(head: dict[str, Any], at: int) -> bool | None:
    """Return whether a change is of this boot of the kernel; None if that is unknown.

    systemd-nspawn gives each start of its machine a new boot_id, while kernel and network namespace
    stay. Then the cookie of the namespace is the same, and so is the time of boot. If the clock was
    set in between, that time differs; and the first namespaces of two boots may have the same
    cookie. (A table's mark, if the table exists, shows that it is of this boot.)

    :param at: when the change was written down
    """
    if head["boot"] == boot_id():
        return True
    cookie: str = head["net"]
    if not cookie.startswith("cookie-") or cookie != network():
        return False
    if at > time.clock_gettime_ns(time.CLOCK_BOOTTIME):
        return False
    return True if abs(head["booted"] - booted()) <= BOOT_SECONDS else None


def network() -> str:
    """Return the identity of this process's network namespace in this boot.

    Before Linux 5.14 it is the inode, which a later namespace may get again.
    """
    with socket.socket(socket.AF_UNIX) as any_socket:
        try:
            cookie = any_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        except OSError:
            return f"inode-{os.stat('/proc/self/ns/net').st_ino}"
    return f"cookie-{int.from_bytes(cookie, 'little')}"


def _head(owner: str, token: str) -> dict[str, Any]:
    return {
        "journal": 1,
        "token": token,
        "owner": owner,
        "pid": os.getpid(),
        "boot": boot_id(),
        "booted": booted(),
        "net": network(),
    }


def parse(name: str, text: bytes) -> tuple[dict[str, Any], list[Change]]:
    """Return head and changes of a journal's text.

    A last line without its end is ignored: the guard has not acted on it.

    :param name: name of its file, without the folder
    :raises Damaged: if a line is not as a guard writes it.
    """
    lines = text.split(b"\n")[:-1]
    rows = [_row(name, number, line) for number, line in enumerate(lines, 1)]
    if not rows:
        return {}, []
    head = rows[0]
    texts = all(isinstance(head.get(field), str) for field in ("token", "owner", "boot", "net"))
    texts = texts and type(head.get("booted")) is int
    if head.get("journal") != 1 or not texts or f"{head['token']}.journal" != name:
        raise Damaged(f"{FOLDER}/{name}: line 1: expected a journal's head: move it away by hand")
    return head, [_change(name, number, row) for number, row in enumerate(rows[1:], 2)]


def _row(name: str, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise Damaged(f"{FOLDER}/{name}: line {number}: expected JSON: move it away by hand")
    return row


def _change(name: str, number: int, row: dict[str, Any]) -> Change:
    texts = ("kind", "name", "found", "set")
    usual = set(row) == set(Change._fields) and all(isinstance(row[key], str) for key in texts)
    if usual and type(row["at"]) is int:
        change = Change(**row)
        if permitted(change):
            return change
    raise Damaged(
        f"{FOLDER}/{name}: line {number}: expected a change that a guard may make: move it away by "
        "hand"
    )


def permitted(change: Change) -> bool:
    """Return whether a guard may make a change of that kind and name, with such values."""
    if change.kind == "sysctl":
        values = VALUE.match(change.found) and VALUE.match(change.set)
        return bool(KEYS.match(change.name) and values)
    if change.kind == "table":
        return bool(TABLE.match(change.name))
    inside = change.name.startswith(LIMITS) and NAME.match(change.name[len(LIMITS) :])
    return bool(change.kind == "file" and inside and re.fullmatch(r"[0-9a-f]{64}", change.set))


def _why_not(change: Change) -> str:
    """Return what is wrong with a change that is not permitted."""
    if change.kind == "sysctl" and KEYS.match(change.name):
        wrong = change.set if VALUE.match(change.found) else change.found
        return (
            f"sysctl {change.name}: got {len(wrong)} characters, {wrong[:60]!r}, expected a line "
            "of ASCII of 65536 at most"
        )
    return f"{change.kind[:60]}: got {change.name[:200]!r}, expected one that a guard may change"


def _orphans() -> tuple[list[_Notes], dict[str, int]]:
    """Return the journals that no guard holds, and the last changes of living guards, by name."""
    journals: list[_Notes] = []
    busy: dict[str, int] = {}
    for name in sorted(os.listdir(FOLDER)):
        token, _, rest = name.partition(".")
        if rest != "journal" or not TOKEN.match(token):
            continue
        path = f"{FOLDER}/{name}"
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _trusted(path, os.fstat(number))
            held = _is_held(number)  # first: a guard that dies later may write until then
            head, changes = parse(name, os.pread(number, SIZE, 0))
            if held:
                for change in changes:
                    busy[change.name] = max(change.at, busy.get(change.name, 0))
            else:
                journals.append(_Notes(path, head, changes))
        finally:
            os.close(number)
    return journals, busy


def _is_held(number: int) -> bool:
    """Return whether the guard of a journal lives; if not, lock the journal."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _trusted(path: str, about: os.stat_result) -> None:
    """Check the owner and mode of a journal or of the folder.

    :raises Damaged: if another user than root could have written it.
    """
    right = stat.S_ISDIR if path == FOLDER else stat.S_ISREG
    mode = stat.S_IMODE(about.st_mode)
    links = about.st_nlink if right is stat.S_ISREG else 1
    if not right(about.st_mode) or about.st_uid != ROOT or mode & 0o077 or links != 1:
        raise Damaged(
            f"{path}: mode {mode:04o} of user {about.st_uid}, expected root's alone: move it away "
            "by hand"
        )
    if right is stat.S_ISREG and about.st_size > SIZE:
        raise Damaged(
            f"{path}: {about.st_size} bytes, expected {SIZE} at most: move it away by hand"
        )


def _keep(notes: _Notes, left: list[Change]) -> None:
    """Remove a journal, or reduce it to the changes that are still to be undone."""
    if not left:
        os.unlink(notes.path)
    elif len(left) < len(notes.changes):
        fresh = f"{FOLDER}/.{os.path.basename(notes.path)}"
        number = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            for row in (notes.head, *(change._asdict() for change in reversed(left))):
                _append(number, row)
        finally:
            os.close(number)
        os.replace(fresh, notes.path)
    _sync_folder()


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _append(number: int, row: dict[str, Any]) -> None:
    data = _line(row)
    if os.write(number, data) != len(data):
        raise OSError(errno.ENOSPC, f"{FOLDER}: {os.strerror(errno.ENOSPC)}")
    os.fsync(number)


def _sync_folder() -> None:
    number = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def _held_folder(make: bool) -> Iterator[bool]:
    """Lock the folder, so that no other guard opens, heals or closes a journal meanwhile.

    Yields whether the folder exists. An empty folder is removed at the end.

    :raises Damaged: if another user than root can write to it.
    :raises OSError: if others hold it for longer than :data:`PATIENCE`.
    """
    until = time.monotonic() + PATIENCE
    number = -1
    while number < 0:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(FOLDER, 0o700)
        try:
            number = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            if make:
                continue  # another guard has removed it since
            yield False
            return
        except NotADirectoryError:  # also the error of O_NOFOLLOW for a link
            raise Damaged(f"{FOLDER}: no directory, expected root's alone: move it away") from None
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _trusted(FOLDER, os.fstat(number))
            if _same(number, FOLDER):
                break
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(number)
                raise OSError(f"{FOLDER}: held by another guard for {PATIENCE:g} s") from None
            time.sleep(0.02)
        except BaseException:
            os.close(number)
            raise
        os.close(number)
        number = -1
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(FOLDER)
        os.close(number)


def _sweep_locks() -> None:
    """Remove lock files that killed guards have left."""
    for path in Path(RUN).glob("connlab-guard.*.lock"):
        with contextlib.suppress(OSError):
            number = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same(number, str(path)):
                    os.unlink(path)  # a process that has opened it meanwhile sees that it is gone
            finally:
                os.close(number)


def _same(number: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(number), os.stat(path))
    except FileNotFoundError:
        return False


def _read(path: str) -> str:
    found = bytearray()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(PIECE):
            found += piece
    return found.decode("ascii", "replace")
