"""A host's limits and evidence as data: the agents' events in the results format."""

from __future__ import annotations

import bisect
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from bench.collect import (
    ParseError,
    cgroups,
    conntrack,
    kernellog,
    limits,
    meminfo,
    nstat,
    slab,
    sockstat,
    ss,
)
from bench.errors import LabError
from bench.results.format import HostRecord, Phase, Setting
from bench.units import printable

PAGE_BYTES = 4096
"""Page size of x86-64, and of arm64 in distributions' kernels."""


def phase(
    event: Mapping[str, Any], taken: datetime | None = None, page_bytes: int = PAGE_BYTES
) -> Phase:
    """Return a host's parsed evidence of one phase (:class:`bench.wire.Collected`).

    A source that the agent could not read, or that the parser does not understand, is named in
    ``missing`` with the reason. The other sources still count, and the raw text is kept.

    :param taken: time of the evidence; by default now
    :param page_bytes: the host's page size
    """
    texts = {name: printable(text, lines=True) for name, text in event["texts"].items()}
    missing = {_text(source): _text(why) for source, why in event["missing"].items()}

    def parsed(name: str, parser: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        if name not in texts:
            missing.setdefault(name, "not sent by the agent")
            return {}
        try:
            return parser(texts[name])
        except ParseError as error:
            missing[name] = f"not understood: {error}"
            return {}

    def extra(name: str, parser: Callable[[str], Any]) -> Any:
        """Parse a source that not every host has."""
        return parsed(name, parser) if name in texts else parser("")

    now = parsed("limits", limits.parse)
    caches = parsed("slabinfo", lambda text: slab.parse(text, page_bytes))
    # These are only names: without the links a label is missing, not evidence.
    aliases = parsed("slab_aliases", slab.parse_aliases) if "slab_aliases" in texts else {}
    return Phase(
        taken=taken or datetime.now(UTC),
        held=event["held"],
        held_each=event.get("held_each", []),
        established=event.get("established"),
        meminfo_kib=parsed("meminfo", meminfo.parse),
        slab_bytes={name: c.slab_bytes for name, c in caches.items() if c.slab_bytes},
        slab_objects={name: c.active for name, c in caches.items() if c.active},
        slab_shared=slab.shared(caches, aliases),
        cgroups=extra("cgroup", cgroups.parse),
        conntrack=extra("conntrack_stat", conntrack.parse),
        kernel_log=kernellog.telling(texts.get("kernel_log", "")),
        sockstat=parsed("sockstat", sockstat.parse)
        | parsed("sockstat6", lambda text: sockstat.parse(text, "sockstat6")),
        ss_summary=parsed("ss_s", ss.parse),
        nstat={name: value for name, value in parsed("nstat", nstat.parse).items() if value},
        limits={key: value for key, value in now.items() if not _idle_limit(key)},
        pss_kib=event["pss_kib"],
        workers=event["workers"],
        missing=missing,
    )


def check_phase(host: str, event: Mapping[str, Any], asked: str) -> None:
    """Check that evidence belongs to the requested phase.

    :raises LabError: if it does not
    """
    if event["phase"] != asked:
        raise LabError(
            f"host {host}: protocol: collected: phase: got {event['phase']!r}, expected {asked!r}"
        )


def _idle_limit(key: str) -> bool:
    """Return whether a limit is a resource limit that connections do not touch."""
    return key.startswith("max_") and not key.startswith(("max_open_files", "max_processes"))


def host_record(event: Mapping[str, Any], groups: Iterable[str]) -> HostRecord:
    """Return a host's record from :class:`bench.wire.Facts`: kernel, limits, the roles' tuning.

    :param groups: the inventory's groups of the host
    """
    tuning, reported = _roles(event.get("roles", {}))
    return HostRecord(
        groups=sorted(groups),
        kernel=_text(event["kernel"]),
        python=_text(event["python"]),
        cpu=event["cpu"],
        mem_total_kib=event["mem_total_kib"],
        limits={
            "nofile_soft": event["nofile_soft"],
            "nofile_hard": event["nofile_hard"],
            "own_tasks": event["own_tasks"],
            "tracking": event["tracking"],
            "cap_sys_resource": event["cap_sys_resource"],
            "ehash_entries": event["ehash_entries"],
        },
        sysctl={_text(key): _text(value) for key, value in event["sysctl"].items()},
        addresses=[_text(address) for address in event["addresses"]],
        tuning=tuning,
        reported=reported,
    )


class Local:
    """A host's local addresses: its own, and prefixes that it routes to itself.

    The lookup is a bisection, because a host may have hundreds of thousands of addresses.
    """

    def __init__(self, host: HostRecord) -> None:
        networks = (ipaddress.ip_network(text, strict=False) for text in host.addresses)
        self._spans: list[tuple[int, int, int]] = []
        """IP version, first and last address; sorted, none inside another."""
        for version, first, minus in sorted(
            (one.version, int(one.network_address), -one.num_addresses) for one in networks
        ):
            last = first - minus - 1
            # Two networks are either nested or disjoint.
            if not self._spans or (version, last) > (self._spans[-1][0], self._spans[-1][2]):
                self._spans.append((version, first, last))

    def __contains__(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        version: int = address.version
        place = bisect.bisect_right(
            self._spans, (version, int(address)), key=lambda span: (span[0], span[1])
        )
        return place > 0 and (version, int(address)) <= (
            self._spans[place - 1][0],
            self._spans[place - 1][2],
        )


def _roles(roles: Mapping[str, Any]) -> tuple[dict[str, dict[str, Setting]], dict[str, str]]:
    """Return the roles' own records (``/var/lib/connlab/<role>.json``) as tuning and reported."""
    tuning: dict[str, dict[str, Setting]] = {}
    reported: dict[str, str] = {}
    for role, record in sorted(roles.items()):
        if "unreadable" in record:
            reported[_text(role)] = _text(record["unreadable"])
            continue
        reported |= {_text(key): _text(why) for key, why in record.get("reported", {}).items()}
        tuning[_text(role)] = {
            _text(key): Setting(
                found=_text(value.get("found")),
                set=_text(value.get("set")),
                where=value.get("where", "host"),
            )
            for key, value in sorted(record.get("settings", {}).items())
        }
    return tuning, reported


def _text(value: object) -> str:
    """Return a host's value as text for one line; ``absent`` for None."""
    return "absent" if value is None else printable(str(value).replace("\t", " "))
