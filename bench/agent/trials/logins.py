"""Logs users in, and reports the limit on open files that their sessions get. Runs as root.

su(1) opens a session by PAM as login and sshd do, so pam_limits(8) applies. A session that
pam_limits leaves alone has the limit of this process: a value that no other source would give.
"""

from __future__ import annotations

import re
import resource
import subprocess
from typing import Any, Dict

from bench.agent import probe
from bench.agent.stage import Misuse, Stage

PATIENCE = 20
"""Seconds for one login."""


def login(user: str) -> Dict[str, Any]:
    """Log a user in; return the session's hard limits.

    ``hard`` is the limit on open files, ``locks`` the limit on file locks; -1 is no limit.

    Both are None if there was no session; ``said`` is the reason.
    """
    try:
        done = subprocess.run(
            [probe.tool("su"), "-s", "/bin/sh", "-c", "cat /proc/self/limits", user],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"login of {user}: no end within {PATIENCE:g} s") from None
    found = hard_limits(done.stdout)
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return {
        "hard": found.get("Max open files"),
        "locks": found.get("Max file locks"),
        "said": "" if found else said[-1],
    }


def hard_limits(text: str) -> Dict[str, int]:
    """Return name to hard limit, from ``/proc/<pid>/limits``; -1 is no limit.

    The format is that of fs/proc/base.c proc_pid_limits.
    """
    rows = (re.split(r" {2,}", row.strip()) for row in text.splitlines()[1:])
    return {row[0]: -1 if row[2] == "unlimited" else int(row[2]) for row in rows if len(row) > 2}


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Log ``users`` in, at once and at each step; ``users`` in an answer is user to outcome.

    ``hard`` is the value to which this process lowers its own hard nofile.
    """
    users, hard = args.get("users"), args.get("hard")
    if not isinstance(users, list) or not users:
        raise Misuse(f"logins: users: got {users!r}, expected a list of users' names")
    now = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not isinstance(hard, int) or not 256 <= hard <= now[1]:
        raise Misuse(f"logins: hard: got {hard!r}, expected 256 to {now[1]}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(now[0], hard), hard))
    while True:
        stage.tell(users={str(user): login(str(user)) for user in users})
        stage.step()
