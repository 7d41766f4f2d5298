"""``limits``: a host's current limits, files one after the other as ``head`` prints them.

Each file begins with ``==> PATH <==``. They are ``/proc/self/limits`` (of the agent, fs/proc/base.c
``proc_pid_limits``) and files of one line such as ``/proc/sys/fs/file-nr``. A line that begins with
``#`` stands for a file that could not be read.
"""

from __future__ import annotations

import re

from bench.collect import ParseError, number, shown
from bench.units import signed

_HEAD = re.compile(r"==> (/\S+) <==")
_RLIMIT = re.compile(
    r"(Max [a-z]+(?: [a-z]+)*) {2,}([0-9]+|unlimited) +([0-9]+|unlimited)(?: +[a-z]+)? *"
)
UNLIMITED = "unlimited"

NUMBERS = ("fs.file-nr",)
"""Files with several values, each of which has to be a number."""


def parse(text: str) -> dict[str, int | str]:
    """Return limit to value.

    Files of ``/proc/sys`` are listed by sysctl name (``fs.file-nr``), other one-line files by path,
    and resource limits as ``max_open_files_soft`` and ``max_open_files_hard``, in the units of
    getrlimit(2). A value that is one integer is a number; others are text with single blanks.

    :raises ParseError: if a line cannot be understood
    """
    found: dict[str, int | str] = {}
    path = ""
    for row, line in enumerate(text.splitlines(), 1):
        head = _HEAD.fullmatch(line)
        if head:
            path = head[1]
        elif not line.strip() or line.startswith("#"):
            continue
        elif not path:
            raise ParseError(f"limits line {row}: {shown(line)} comes before any `==> PATH <==`")
        elif path.endswith("/limits"):
            found |= _rlimit(f"limits line {row}", line)
        elif _key(path) in found:
            raise ParseError(f"limits line {row}: {shown(line)} is a second line of {shown(path)}")
        else:
            found[_key(path)] = _value(line)
            if _key(path) in NUMBERS:
                for word in line.split():
                    number(word, f"limits line {row}: {_key(path)}")
    return found


def _rlimit(where: str, line: str) -> dict[str, int | str]:
    """Return the limits in one line of /proc/<pid>/limits; none for its title line."""
    if line.startswith("Limit "):
        return {}
    match = _RLIMIT.fullmatch(line)
    if not match:
        raise ParseError(f"{where}: {shown(line)} is not `Max thing  soft  hard  unit`")
    name = match[1].replace(" ", "_").lower()
    return {
        f"{name}_{which}": UNLIMITED if value == UNLIMITED else number(value, where)
        for which, value in (("soft", match[2]), ("hard", match[3]))
    }


def _key(path: str) -> str:
    """Return the sysctl name of a path below /proc/sys; other paths as they are."""
    if not path.startswith("/proc/sys/"):
        return path
    # As in sysctl(8): a dot within a name, such as an interface's, becomes a slash.
    return path.removeprefix("/proc/sys/").translate(str.maketrans("/.", "./"))


def _value(text: str) -> int | str:
    words = " ".join(text.split())
    value = signed(words)
    return words if value is None else value
