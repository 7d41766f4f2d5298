"""Whether a number of connections fits the hosts, and what would have to change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import yaml

from bench.model.catalogue import CATALOGUE
from bench.results.format import Bound

NOFILE_MARGIN = 4096
"""Descriptors besides the connections, as the role tune_limits adds them."""

MARGIN = 8
"""One part in so many comes on top of a kernel parameter that is written, as the role tune_sysctl
has it: besides connections there are files and watches of the agents and of others."""

_SYSCTLS = {
    "fs.nr_open": "fs.nr_open",
    "fs.file-max": "fs.file-max",
    "fs.epoll.max_user_watches": "fs.epoll.max_user_watches",
    "nf_conntrack_max": "net.netfilter.nf_conntrack_max",
}
"""Limits that the role tune_sysctl can raise, by the model's name."""


class Change(NamedTuple):
    """A limit that is too low for what is asked."""

    bound: Bound
    needed: int
    """What the limit has to be, in its own unit."""
    how: str
    """What raises it."""


def changes(bounds: Iterable[Bound], connections: int) -> list[Change]:
    """What is too low for so many connections, the lowest first."""
    return [
        Change(one, needed(one, connections), CATALOGUE[one.name].raise_by)
        for one in bounds
        if one.max_connections < connections
    ]


def needed(bound: Bound, connections: int) -> int:
    """What a limit has to be for so many connections: the model's formula turned round."""
    return bound.used + math.ceil(connections * bound.per_connection)


def variables(wanted: Iterable[Change], connections: int) -> dict[str, Any]:
    """Ansible variables for the tuning roles that make the connections fit, as far as they can.

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
    """The variables as a file for ``ansible-playbook playbooks/tune.yml -e @FILE``.

    What no role can raise stands in it as comments.
    """
    lines = [
        "---",
        f"# For {connections:,} connections on the hosts of {source}:",
        "# ansible-playbook playbooks/tune.yml -e @FILE",
        "# In place of the inventory's own tune_sysctl_extra, where it has one.",
        *yaml.safe_dump(variables(wanted, connections), sort_keys=False).splitlines(),
    ]
    rest = [one for one in wanted if one.bound.name not in _SYSCTLS]
    if rest:
        lines += ["", "# By hand, unless a role does it by `connections` (nofile, alias_ips):"]
        lines += [f"# {text}" for one in rest for text in _by_hand(one)]
    return "\n".join(lines) + "\n"


def _by_hand(one: Change) -> Iterator[str]:
    bound = one.bound
    where = f" on {bound.host}" if bound.host else ""
    yield f"{bound.name}{where}: {bound.limit:,} {bound.unit}, needed are {one.needed:,}:"
    yield f"  {one.how}"
