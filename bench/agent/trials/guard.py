"""Changes a host's settings while its input is open, and restores them when the input ends.

This is for settings that an experiment needs for seconds; the tuning roles are for settings that
stay. It runs as root. Each step names what to set, and the answer has the values found before.
Whatever ends the process, its changes are undone in reverse order. Until then no other controller's
guard may change the same settings.

If a guard is killed, the next guard undoes its changes before it makes its own
(:mod:`bench.agent.trials.journal`).
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any, Callable, Dict, Iterator, List

from bench.agent import probe
from bench.agent.stage import SIGNALS, Misuse, Stage
from bench.agent.trials import journal
from bench.agent.trials.journal import Change, Journal
from bench.agent.trials.locks import Locks, namespace


class Settings:
    """The settings that have been changed, and how to restore them.

    Each change raises :class:`bench.agent.stage.Misuse` if it is not allowed, or not now, and
    OSError if it is impossible, or cannot be written down first.
    """

    def __init__(self, owner: str = "") -> None:
        """Start without changes.

        :param owner: whose settings may be changed once more (:mod:`bench.agent.trials.locks`)
        """
        self._undo: List[Callable[[], None]] = []
        self._locks = Locks(owner)
        self._journal = Journal(owner)

    def heal(self) -> List[str]:
        """Undo what killed guards have left; return what others have changed since.

        :raises OSError: if something cannot be undone, or a journal is not a guard's.
        """
        with _whole():
            outcome = journal.heal()
        if outcome.failed:
            raise OSError(f"left by an earlier experiment: {'; '.join(outcome.failed)}")
        return outcome.kept

    def sysctl(self, key: str, value: str) -> str:
        """Set a kernel parameter and read it back; return the value found before."""
        if not journal.KEYS.match(key):
            raise Misuse(f"sysctl: got {key}, expected a key of net.* or of the limits of fs.*")
        if not journal.VALUE.match(value):
            raise Misuse(f"sysctl {key}: got {value!r}, expected one line of ASCII")
        path = journal.sysctl_path(key)
        self._take(f"sysctl {key}", namespace() if key.startswith("net.") else "kernel")
        found = probe.text(path).strip()
        with _whole():
            self._note(Change("sysctl", key, found, value))
            _write(path, value)
            now = " ".join(probe.text(path).split())
            sticks = now == " ".join(value.split())
            if not sticks:
                self._note(Change("sysctl", key, found, now))
        if not sticks:
            raise Misuse(f"sysctl {key}: got {now} after a write of {value}")
        return found

    def table(self, name: str, body: str) -> None:
        """Create an nftables table; there must be none of that name."""
        if not journal.TABLE.match(name):
            raise Misuse(f"table: got {name!r}, expected FAMILY connlab_NAME")
        self._take(f"table {name}", namespace())
        with _whole():
            change = self._noted(Change("table", name))
            journal.make_table(name, body, self._journal.token)
            self._undo.append(lambda: self._remove(change))

    def file(self, path: str, text: str) -> None:
        """Create a file that does not exist yet."""
        data = text.encode()
        change = Change("file", path, set=journal.digest(data))
        if not journal.permitted(change):
            raise Misuse(f"file: got {path}, expected one in {journal.LIMITS}")
        if len(data) > journal.SIZE:
            raise Misuse(f"file {path}: got {len(data)} bytes, expected {journal.SIZE} at most")
        self._take(f"file {path}", "files")
        with _whole():
            self._noted(change)
            journal.make_file(path, data, self._journal.token)
            self._undo.append(lambda: self._revert(change))

    def _note(self, change: Change) -> None:
        """Write a change down, and register its undo."""
        self._noted(change)
        self._undo.append(lambda: self._revert(change))

    def _noted(self, change: Change) -> Change:
        """Write a change down. :raises Misuse: if no guard would undo it."""
        try:
            return self._journal.note(change)
        except journal.Refused as error:
            raise Misuse(str(error)) from None

    def _revert(self, change: Change) -> None:
        """Undo a change. :raises journal.Kept: if the setting is no longer as it was set."""
        token = self._journal.token
        try:
            journal.undo(change, token)
        except journal.Kept:
            # A guard within this one may have been killed: its changes are undone first.
            with contextlib.suppress(OSError):
                journal.heal()
            journal.undo(change, token)

    def _remove(self, change: Change) -> None:
        """Remove a table. :raises journal.Kept: if it is gone, or another's, in nft's words."""
        token = self._journal.token
        try:
            journal.remove_table(change.name, token)
        except OSError as error:
            with contextlib.suppress(journal.Kept):
                if journal.undo(change, token, write=False):
                    raise
            raise journal.Kept(str(error)) from None

    def _take(self, what: str, scope: str) -> None:
        with _whole():
            self._locks.take(what, scope)

    def put_back(self) -> List[str]:
        """Undo everything, the last change first; return what could not be undone."""
        kept, failed = [], []
        with _whole():
            while self._undo:
                try:
                    self._undo.pop()()
                except journal.Kept as reason:
                    kept.append(str(reason))
                except (OSError, probe.Unreadable) as error:
                    failed.append(str(error))
            if failed:  # the next guard, or the revert, tries again
                self._journal.abandon()
            else:
                self._journal.close()
            self._locks.give_back()
        return failed + kept


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Apply ``args``, then each step, until the end of the input.

    A step has ``sysctl`` {key: value}, ``tables`` {``family name``: body} and ``files`` {path:
    text}. The answer has ``found`` {key: value found before}. The first answer also has ``kept``:
    changes of killed guards that others have changed since. ``back`` true undoes everything.
    ``owner`` names the controller to its own other guards, which may change the same settings once
    more.
    """
    settings = Settings(str(args.get("owner", "")))
    kept = settings.heal()
    try:
        step: Dict[str, Any] = args
        while True:
            if step.get("back"):
                failed = settings.put_back()
                if failed:
                    raise OSError("; ".join(failed))
                return {"found": {}}
            found = {
                key: settings.sysctl(key, str(value))
                for key, value in (step.get("sysctl") or {}).items()
            }
            for name, body in (step.get("tables") or {}).items():
                settings.table(name, str(body))
            for path, text in (step.get("files") or {}).items():
                settings.file(path, str(text))
            stage.tell(found=found, **({"kept": kept} if kept else {}))
            kept = []
            step = stage.step() or {}
    finally:
        for line in kept + settings.put_back():
            os.write(2, f"not put back: {line}\n".encode())


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """Delay signals, so that a change and its undo, or all undoing, are not interrupted."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value + "\n")
