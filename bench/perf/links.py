"""Hosts that are bare namespaces on this machine, reached as the controller reaches real hosts."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from bench.errors import LabError
from bench.hosts.transport import COMMAND_SECONDS
from bench.inventory import Host
from bench.perf.netns import Namespaces


class LocalProcess:
    """A program on this machine; :class:`bench.hosts.transport.Process`."""

    def __init__(self, argv: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe)

    def write(self, data: bytes) -> None:
        """Write to its standard input. :raises OSError: if it is gone."""
        assert self._process.stdin
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of its standard output until it ends."""
        return _lines(self._process.stdout)

    def errors(self) -> Iterator[bytes]:
        """Yield the lines of its standard error until it ends."""
        return _lines(self._process.stderr)

    def close(self) -> None:
        """Close its standard input and wait for its end."""
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()


def _lines(stream: IO[bytes] | None) -> Iterator[bytes]:
    assert stream
    with contextlib.suppress(ValueError), stream:  # ValueError: closed while it was read
        for line in stream:
            yield line.rstrip(b"\n")


class NamespaceLink:
    """One namespace as a host; :class:`bench.hosts.transport.Link`."""

    def __init__(self, net: Namespaces, host: Host) -> None:
        self._enter, self._name = net.enter(host.name), host.name

    def give_up_after(self, seconds: float) -> None:
        """Do nothing: a connection to a namespace cannot be lost."""

    def put(self, data: bytes, path: str) -> str:
        """Write a file, mode 0700, into a new private directory; return its path."""
        there = Path(path)
        there.parent.mkdir(mode=0o700)
        there.write_bytes(data)
        there.chmod(0o700)
        return path

    def remove(self, path: str) -> None:
        """Remove a file that :meth:`put` wrote, and its directory; a missing file is no error."""
        shutil.rmtree(Path(path).parent, ignore_errors=True)

    def run(self, argv: Sequence[str], seconds: float = COMMAND_SECONDS) -> str:
        """Run a command to its end and return its standard output.

        :raises LabError: if it fails or does not end in time.
        """
        command = [*self._enter, *argv]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"host {self._name}: {argv[0]}: no end within {seconds:g} s") from None
        if done.returncode:
            raise LabError(f"host {self._name}: {argv[0]}: {done.stderr.strip()}")
        return done.stdout

    def start(self, argv: Sequence[str]) -> LocalProcess:
        """Start a program."""
        return LocalProcess([*self._enter, *argv])

    def close(self) -> None:
        """Do nothing: no connection is kept open."""


def host(name: str, group: str, addresses: Sequence[str]) -> Host:
    """Return a namespace in the form of an inventory's host."""
    return Host(
        name=name,
        groups=(group,),
        address="",
        port=0,
        user="root",
        key_file=None,
        known_hosts=None,
        data_addresses=tuple(addresses),
    )
