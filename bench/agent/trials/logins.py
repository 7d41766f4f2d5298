"""Logs users in and tells what limit on open files their sessions got. Runs as root.

su(1) opens a session by PAM as login and sshd do, so pam_limits(8) has its say.
"""

from __future__ import annotations

import subprocess
from typing import Any, Dict

from bench.agent import probe
from bench.agent.stage import Misuse, Stage

PATIENCE = 20
"""Seconds for one login."""


def login(user: str) -> Dict[str, Any]:
    """``hard``: the session's hard nofile, None if there was no session; ``said``: why not."""
    done = subprocess.run(
        [probe.tool("su"), "-s", "/bin/sh", "-c", "ulimit -Hn", user],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    words = done.stdout.split()
    in_ = done.returncode == 0 and len(words) == 1 and words[0].isdigit()
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return {"hard": int(words[0]) if in_ else None, "said": "" if in_ else said[-1]}


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Log ``users`` in, at once and at each step; ``users`` in an answer is user to outcome."""
    users = args.get("users")
    if not isinstance(users, list) or not users:
        raise Misuse(f"logins: users: got {users!r}, expected a list of users' names")
    while True:
        stage.tell(users={str(user): login(str(user)) for user in users})
        stage.step()
