"""The version of this program: the commit of its checkout."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

GIT_SECONDS = 10.0
"""Time limit for git(1) on a checkout: it takes a fraction of a second, more on a network file
system."""


def version() -> str:
    """Return one line such as ``connlab, commit 1a2b3c4d5e6f of 2026-01-31, with changes``.

    Without git(1), or outside a checkout of its own, the commit is ``unknown``.
    """
    top, commit = _git("rev-parse", "--show-toplevel"), _git("log", "-1", "--format=%h of %cs")
    if not top or Path(top) != ROOT or not commit:
        return "connlab, commit unknown"
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"connlab, commit {commit}" + (", with changes" if changed else "")


def _git(*words: str) -> str:
    """Return what git(1) prints about this checkout; nothing if it fails."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", ROOT, *words],
            env={key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
            capture_output=True,
            text=True,
            check=True,
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
