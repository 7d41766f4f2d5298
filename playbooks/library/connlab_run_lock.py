#!/usr/bin/python
"""Ansible module: whether a run in progress holds this host."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Iterable
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: connlab_run_lock
short_description: Say which runs hold this host
description:
  - The agents of a run hold a lock (flock(2)) on their host for as long as they live. This looks
    for such locks and says whose they are. It changes nothing but to remove files that nobody
    holds any more.
options:
  directories:
    description: Where agents keep their locks; they take the first that they can write to.
    type: list
    elements: path
    default: [/run/lock, /dev/shm, /tmp]
author: connlab
"""
EXAMPLES = r"""
- name: See whether a run is in progress
  connlab_run_lock:
  register: lock
"""
RETURN = r"""
holders:
  description: Who holds the host, which run it is, and since when, in a line for each.
  returned: always
  type: list
"""

DIRECTORIES = ["/run/lock", "/dev/shm", "/tmp"]
NAME = re.compile(r"connlab-run\.[0-9a-f]{16}\.lock")
LARGEST = 4096
"""Bytes of a lock's text, at most."""
LONGEST = 200
"""Characters of a field that are shown, at most."""
UNKNOWN = "an unknown holder"


def shown(value: Any) -> str:
    """Return the start of a text without what a terminal could take for a command."""
    if not isinstance(value, str) or not value:
        return "unknown"
    return "".join(each if each.isprintable() else "?" for each in value[:LONGEST])


def holder(raw: bytes) -> str:
    """Return who holds a lock from its text, which anybody on the host may have written."""
    if len(raw) > LARGEST:
        return UNKNOWN
    try:
        about = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        return UNKNOWN
    if not isinstance(about, dict):
        return UNKNOWN
    who, run, since = (shown(about.get(field)) for field in ("who", "run", "since"))
    return f"{who}, {run}, since {since}"


def held_by(path: str, tidy: bool) -> str | None:
    """Return who holds a lock, None where nobody does. tidy: remove it then."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:
        return UNKNOWN
    except OSError:  # gone by now, a link, a socket
        return None
    try:
        about = os.fstat(number)
        if not stat.S_ISREG(about.st_mode):
            return None
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                return None  # no lock can be had here, so nobody has one
            return holder(os.pread(number, LARGEST + 1, 0))
        if tidy:
            with contextlib.suppress(OSError):
                if os.path.samestat(about, os.lstat(path)):
                    os.unlink(path)
        return None
    finally:
        os.close(number)


def holders(directories: Iterable[str], tidy: bool) -> list[str]:
    """Return who holds this host, in the order of the locks' names."""
    paths = []
    for directory in directories:
        with contextlib.suppress(OSError):
            names = [name for name in os.listdir(directory) if NAME.fullmatch(name)]
            paths += [os.path.join(directory, name) for name in sorted(names)]
    found = [held_by(path, tidy) for path in paths]
    return [each for each in dict.fromkeys(found) if each is not None]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directories": {"type": "list", "elements": "path", "default": DIRECTORIES},
        },
        supports_check_mode=True,
    )
    found = holders(module.params["directories"], not module.check_mode)
    module.exit_json(changed=False, holders=found)


if __name__ == "__main__":
    main()
