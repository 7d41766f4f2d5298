"""The agent's modules that are run by themselves on a host: the look before a push, the clean-up.

Both go as source to the host's Python, over the connection that the agent is pushed over. What they
print is checked here.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from importlib import resources
from typing import Any

from bench import wire
from bench.agent import hostlock
from bench.errors import InputError, LabError
from bench.hosts import messages
from bench.hosts.agent import MOST_ERROR, Agent
from bench.hosts.transport import Link
from bench.inventory import Host
from bench.units import printable

STOP_SECONDS = 20.0
"""Seconds for agents to close what they hold when they are ordered to stop."""

LOST_PATIENCE = 1.0
"""The same for an agent that is treated as dead, s."""

CLEAN_SECONDS = 10.0
"""Seconds for what is left after that to be killed and reported, over SSH."""

OLDEST_PYTHON = (3, 9)

OWNER = secrets.token_hex(8)
"""Identifies this controller to agents and guards of others. Its own agents may share a host, and
its own guards may change a setting that one of them has already changed."""

NOBODY = ""
"""No owner: asking for the holders of a host without an owner also removes all leftover lock
files."""


def _source(name: str) -> str:
    """Return the source of an agent's module that is run by itself."""
    return (resources.files("bench") / "agent" / f"{name}.py").read_text(encoding="utf-8")


_LOOK = f"""\
import sys
print("%d.%d" % sys.version_info[:2])
sys.stdout.flush()
if sys.argv[1:] and sys.version_info >= {OLDEST_PYTHON}:
    exec(compile(sys.argv.pop(1), "hostlock", "exec"), {{"__name__": "__main__"}})
"""
"""Prints a Python's version, and then the output of :mod:`bench.agent.hostlock`, whose source and
arguments it gets: one start of a Python serves both."""


def look(host: Host, link: Link, doing: str | None) -> None:
    """Check that a host has a Python that can run the agent, and no other run if ``doing`` is set.

    :raises InputError: if it has no such Python
    :raises LabError: if it does not answer, or another run has it; the text says which, since when
    """
    # A host without Python prints nothing, which differs from a host that does not answer.
    script = 'p=$(command -v python3) || exit 0; exec "$p" -c "$@"'
    lock = [_source("hostlock"), OWNER] if doing else []
    version, _, holders = link.run(["sh", "-c", script, "sh", _LOOK, *lock]).partition("\n")
    _check_python(host, version.strip())
    if doing:
        _check_free(host, holders)


def _check_python(host: Host, found: str) -> None:
    wanted = ".".join(str(part) for part in OLDEST_PYTHON)
    if not found:
        raise InputError(f"host {host.name}: python3: not found, expected {wanted} or newer")
    version = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,3})", found)
    if version is None or (int(version[1]), int(version[2])) < OLDEST_PYTHON:
        raise InputError(
            f"host {host.name}: python3: got {printable(found)[:40]}, expected {wanted} or newer"
        )


def _check_free(host: Host, holders: str) -> None:
    try:
        held = [hostlock.named(entry) for entry in messages.parse(holders)]
    except (ValueError, TypeError, KeyError):
        raise LabError(f"host {host.name}: cannot determine whether another run has it") from None
    if held:
        raise LabError(f"host {host.name}: {printable(held[0])[:MOST_ERROR]}")


def stop(agent: Agent) -> str | None:
    """End one agent; return what is left of it, in words. Never raises."""
    agent.ended.set()
    patience = LOST_PATIENCE if agent.lost else STOP_SECONDS
    with contextlib.suppress(Exception):
        agent.tell({"op": "stop"})
    left: str | None = None
    try:
        words = ["python3", "-c", _source("remains"), agent.path, f"{patience:g}", wire.PUSHED]
        output = agent.link.run(words, patience + CLEAN_SECONDS)
        left = _left(agent, messages.parse(output))
        if agent.lost and agent.locked:  # a killed agent leaves its lock's file
            agent.link.run(["python3", "-c", _source("hostlock"), NOBODY], CLEAN_SECONDS)
    except Exception as error:
        reason = str(error).removeprefix(f"host {agent.name}: ").splitlines()[:1]
        left = f"{agent.what()} may be left: {printable(''.join(reason))}"
    agent.gone = left is None
    for end in (agent.process, agent.link):
        with contextlib.suppress(Exception):
            end.close()
    return left


def _left(agent: Agent, report: Any) -> str | None:
    """Return what a report of :mod:`bench.agent.remains` says, in words; None if nothing is left.

    :raises ValueError: if it is not such a report.
    """
    if not isinstance(report, dict) or set(report) != {"processes", "folder"}:
        raise ValueError("its clean-up report was not understood")
    if report["processes"]:
        numbers = ", ".join(str(int(pid)) for pid in list(report["processes"])[:8])
        return f"{agent.what()} is left: process {numbers} cannot be killed"
    if report["folder"]:
        return f"{agent.what()}: its directory is left, something else is in it"
    return None
