"""Changes a host's settings while its input is open, and puts them back when it ends.

For what an experiment needs for seconds: the tuning roles are for what is to stay. Runs as root.
Each step names what to set; the answer says what was found. Whatever ends the process, what was
changed goes back in reverse order. Until then no other controller's guard may change the same.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from typing import Any, Callable, Dict, Iterator, List

from bench.agent import about, probe
from bench.agent.stage import SIGNALS, Misuse, Stage
from bench.agent.trials.locks import Locks, namespace

KEYS = re.compile(
    r"net\.(ipv4|ipv6|core|netfilter)(\.[a-z0-9_-]+)+\Z"
    r"|fs\.(file-max|nr_open|epoll\.max_user_watches)\Z"
)
"""Kernel parameters that may be changed: those that experiments are about, each by one name."""

FOLDER = "/etc/security/limits.d/"
"""Where files may be made: pam_limits(8) reads them at each login."""

TABLE = re.compile(r"(ip|ip6|inet) connlab_[a-z_]+\Z")
"""nftables tables that may be made (nft(8)): family and name."""


class Settings:
    """What has been changed, and how it goes back.

    Each change raises :class:`bench.agent.stage.Misuse` for what may not be changed, or not now.
    """

    def __init__(self, owner: str = "") -> None:
        """``owner``: whose settings may be changed once more (:mod:`bench.agent.trials.locks`)."""
        self._undo: List[Callable[[], None]] = []
        self._locks = Locks(owner)

    def sysctl(self, key: str, value: str) -> str:
        """Set a kernel parameter and read it back; returns the value found before."""
        if not KEYS.match(key):
            raise Misuse(f"sysctl: got {key}, expected a key of net.* or of the limits of fs.*")
        path = about.sysctl_path(key)
        self._take(f"sysctl {key}", namespace() if key.startswith("net.") else "kernel")
        found = probe.text(path).strip()
        with _whole():
            self._undo.append(lambda: _write(path, found))
            _write(path, value)
        now = probe.text(path).split()
        if now != value.split():
            raise Misuse(f"sysctl {key}: got {' '.join(now)} after a write of {value}")
        return found

    def table(self, name: str, body: str) -> None:
        """Make an nftables table; one of that name must not be there."""
        if not TABLE.match(name):
            raise Misuse(f"table: got {name!r}, expected FAMILY connlab_NAME")
        nft = probe.tool("nft")
        self._take(f"table {name}", namespace())
        with _whole():
            _run([nft, "-f", "-"], f"create table {name}\ntable {name} {{\n{body}\n}}\n")
            self._undo.append(lambda: _run([nft, "delete", "table", *name.split()]))

    def file(self, path: str, text: str) -> None:
        """Make a file that is not there yet."""
        if not path.startswith(FOLDER) or "/" in path[len(FOLDER) :]:
            raise Misuse(f"file: got {path}, expected one in {FOLDER}")
        self._take(f"file {path}", "files")
        with _whole():
            made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            self._undo.append(lambda: os.unlink(path))
        with open(made, "w", encoding="utf-8") as file:
            file.write(text)

    def _take(self, what: str, scope: str) -> None:
        with _whole():
            self._locks.take(what, scope)

    def put_back(self) -> List[str]:
        """Undo everything, last first; returns what could not be."""
        failed = []
        with _whole():
            while self._undo:
                try:
                    self._undo.pop()()
                except (OSError, probe.Unreadable) as error:
                    failed.append(str(error))
            self._locks.give_back()
        return failed


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Apply ``args``, then each step, until the end of the input.

    A step has ``sysctl`` {key: value}, ``tables`` {``family name``: body} and ``files`` {path:
    text}; the answer has ``found`` {key: value found before}. ``back`` true puts everything back.
    ``owner`` names the controller to other guards of its own: those may change the same once more.
    """
    settings = Settings(str(args.get("owner", "")))
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
            stage.tell(found=found)
            step = stage.step() or {}
    finally:
        for line in settings.put_back():
            os.write(2, f"not put back: {line}\n".encode())


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """Let the end wait: a change and its undo, or all undoing, are not torn apart."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value + "\n")


def _run(argv: List[str], text: str = "") -> None:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise OSError(0, f"{os.path.basename(argv[0])}: {said[0]}")
