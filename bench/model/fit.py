"""The fit of a number of connections to the hosts, and the limits that would have to change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import yaml

from bench.model.catalogue import CATALOGUE
from bench.results.format import Bound

NOFILE_MARGIN = 4096
"""Descriptors that the role tune_limits adds to the connections."""

MARGIN = 8
"""A written kernel parameter is one eighth higher than needed, as in the role tune_sysctl: the
agents and other programs have files and watches too."""

_SYSCTLS = {
    "fs.nr_open": "fs.nr_open",
    "fs.file-max": "fs.file-max",
    "fs.epoll.max_user_watches": "fs.epoll.max_user_watches",
    "nf_conntrack_max": "net.netfilter.nf_conntrack_max",
}
"""Limits that the role tune_sysctl can raise, by the model's name."""


class Change(NamedTuple):
    """A limit that is too low for the connections."""

    bound: Bound
    needed: int
    """The value that the limit has to have, in its own unit."""
    how: str
    """What raises it."""


def changes(bounds: Iterable[Bound], connections: int) -> list[Change]:
    """Return the limits that are too low for that many connections, the lowest first."""
    return [
        Change(one, needed(one, connections), CATALOGUE[one.name].raise_by)
        for one in bounds
        if one.max_connections < connections
    ]


def needed(bound: Bound, connections: int) -> int:
    """Return the value that a limit needs for that many connections: the model's formula, solved
    for the limit."""
    return bound.used + math.ceil(connections * bound.per_connection)


def variables(wanted: Iterable[Change], connections: int) -> dict[str, Any]:
    """Return Ansible variables with which the tuning roles make the connections fit, if they can.

    ``nofile`` is not among them: the role grants a host's whole share to one process.
    """
    found: dict[str, Any] = {"connections": connections}
    for one in wanted:
        key = _SYSCTLS.get(one.bound.name)
        if key:
            extra = found.setdefault("tune_sysctl_extra", {})
            value = one.needed + one.needed // MARGIN + NOFILE_MARGIN
            extra[key] = max(value, extra.get(key, 0))
    return found


def vars_file(wanted: list[Change], connections: int, source: str) -> str:
    """Return the variables as a file for ``ansible-playbook playbooks/tune.yml -e @FILE``.

    Limits that no role can raise are listed as comments.
    """
    lines = [
        "---",
        f"# For {connections:,} connections on the hosts of {source}:",
        "# ansible-playbook playbooks/tune.yml -e @FILE",
        "# This replaces the inventory's own tune_sysctl_extra.",
        *yaml.safe_dump(variables(wanted, connections), sort_keys=False).splitlines(),
    ]
    rest = [one for one in wanted if one.bound.name not in _SYSCTLS]
    if rest:
        lines += ["", "# To raise by hand, unless a role does (nofile, alias_ips: `connections`):"]
        lines += [f"# {text}" for one in rest for text in _by_hand(one)]
    return "\n".join(lines) + "\n"


def _by_hand(one: Change) -> Iterator[str]:
    bound = one.bound
    where = f" on {bound.host}" if bound.host else ""
    yield f"{bound.name}{where}: {bound.limit:,} {bound.unit} found, {one.needed:,} needed:"
    yield f"  {one.how}"
