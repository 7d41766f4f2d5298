"""The first process of a small host: an SSH server that runs what it is asked to, in namespaces.

usage: sshhost.py ADDRESS FOLDER

Started in network, mount and pid namespaces of the host's own. Keys and ``known_hosts`` go to
FOLDER; the port is printed. Ends with its standard input.

What runs here is real, and so is what it may harm: commands run as nobody, and all of this
machine's file systems are read-only here but for three directories of the host's own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import sshd

LONG_SECONDS = 86_400.0
OWN = ("/run/lock", "/dev/shm", "/tmp")
"""Directories that a host has to itself: agents and locks are in them."""


def main() -> None:
    """Serve until nobody wants it any more."""
    address, folder = sys.argv[1], Path(sys.argv[2])
    sshd.LIMIT_SECONDS = LONG_SECONDS
    server = sshd.Sshd(folder, address=address, window=1 << 21)
    server.root.rmdir()
    with server:
        (folder / "known_hosts.new").write_text(server.known_line(server.key))
        os.replace(folder / "known_hosts.new", folder / "known_hosts")
        shut_off()
        server.root = Path("/tmp")
        print(server.port, flush=True)
        with contextlib.suppress(OSError):
            sys.stdin.read()
        os._exit(0)


def shut_off() -> None:
    """Make all that is mounted read-only, but for what is this host's own."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if point != "/proc":
            words = ["mount", "-o", "remount,bind,ro", point]
            done = subprocess.run(words, capture_output=True, check=False)
            if done.returncode and point == "/":
                raise RuntimeError(done.stderr.decode())
    for own in OWN:
        if os.path.isdir(own):
            words = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=1777", "tmpfs", own]
            subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
