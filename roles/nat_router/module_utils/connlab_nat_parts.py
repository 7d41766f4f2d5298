"""What makes a host a translating router or leads it to one: its table, parameters and routes.

Each function brings one of them to what is wanted, reads it back, and returns the differences as
Ansible prints them with --diff. Errors: ValueError or SysctlError naming what did not hold.
Only the standard library, Python 3.9 or newer: this runs on the hosts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.connlab_ip import Ip
from ansible.module_utils.connlab_nft import FAMILY, TABLE, Nft, ruleset
from ansible.module_utils.connlab_record import Record, difference, lines, save_record
from ansible.module_utils.connlab_sysctl_tree import (
    PROC_SYS,
    SysctlError,
    apply,
    mismatches,
    read_key,
    remember,
    revert,
    runtime_diff,
    write_key,
)

ROOT = PROC_SYS
FORWARD = "net.ipv4.ip_forward"
CONNTRACK_MAX = "net.netfilter.nf_conntrack_max"


def carried(root: Path) -> list[str]:
    """Return the keys that change with ip_forward: inet_forward_change(), net/ipv4/devinet.c."""
    names = sorted(path.parent.name for path in root.glob("net/ipv4/conf/*/forwarding"))
    keys = [f"net.ipv4.conf.{name.replace('.', '/')}.forwarding" for name in names if name != "all"]
    return ["net.ipv4.conf.all.accept_redirects", *keys]


class Host:
    """This host's tools, looked for only where they are needed."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.ip = Ip(module)

    def nft(self) -> Nft:
        """Return nft(8)."""
        return Nft(self.module)

    def systemctl(self, *words: str) -> bool:
        """Run systemctl(1); return whether it said yes."""
        path = self.module.get_bin_path("systemctl", required=True)
        return int(self.module.run_command([path, *words])[0]) == 0


def refuse(given: Mapping[str, Any], record: Record, host: Host) -> None:
    """Refuse what is somebody else's. Errors: ValueError naming it; nothing is touched by then."""
    if given["translation"] and not record.get("translation") and host.nft().has_table():
        raise ValueError(f"table {FAMILY} {TABLE}: found one that is not the lab's")
    have = host.ip.prefixes() if given["routes"] else {}
    for to, via in given["routes"].items():
        if to in have and to not in record.get("routes", {}):
            way = " ".join(filter(None, have[to]))
            raise ValueError(f"route {to}: wanted {via}, found {way}, which is not the lab's")


def translate(given: Mapping[str, Any], host: Host, write: bool) -> list[dict[str, str]]:
    """Bring the table to what is wanted and read it back; return the differences."""
    if not given["translation"]:
        return []
    nft = host.nft()
    wanted = given["translation"]
    if nft.translation() == wanted:
        return []
    text = ruleset(wanted)
    if write:
        nft.load(text)
        if (found := nft.translation()) != wanted:
            raise ValueError(f"table {FAMILY} {TABLE}: wanted {wanted}, found {found}")
    return [difference(f"nftables table {TABLE}", "", text)]


def parameters(given: Mapping[str, Any], record: Record, write: bool) -> list[dict[str, str]]:
    """Set the kernel parameters and read them back; return the differences."""
    wanted: dict[str, str] = given["sysctls"]
    now = {key: read_key(key, ROOT) for key in wanted}
    stale = {key: value for key, value in wanted.items() if now[key] != value}
    # What an earlier run set and this one does not ask for goes back.
    kept = {*wanted, *carried(ROOT)}
    since = {key: at for key, at in record["since"].items() if key not in kept}
    given_up = revert({**record, "since": since}, {}, write, ROOT)[0]
    for key in since if write else ():
        del record["since"][key]
    if stale and write:
        found = {key: value for key, value in now.items() if value is not None}
        if FORWARD in stale:
            found.update({key: read_key(key, ROOT) or "" for key in carried(ROOT)})
        remember(record, found, "host")
        save_record(given["record"], record)

        def load() -> str:
            for key, value in wanted.items():
                if key in stale:
                    write_key(key, value, ROOT)
            return ""

        apply(wanted, load, ROOT, along=carried(ROOT))
    for key in record["since"]:
        record["settings"][key]["set"] = wanted.get(key) or read_key(key, ROOT) or ""
    if not stale and not given_up:
        return []
    before = {**{key: now[key] for key in stale}, **{k: pair[0] for k, pair in given_up.items()}}
    after = {**stale, **{key: pair[1] for key, pair in given_up.items()}}
    return [runtime_diff(before, after)]


def lead(given: Mapping[str, Any], record: Record, host: Host, write: bool) -> list[dict[str, str]]:
    """Add the routes that are missing and read them back; return the differences."""
    wanted, ours, device = given["routes"], record.get("routes", {}), given["interface"]
    if not wanted and not ours:
        return []
    have = host.ip.prefixes()
    drop = [to for to in ours if to not in wanted and to in have]
    add = {to: via for to, via in wanted.items() if have.get(to) != (via, device)}
    if not drop and not add:
        return []
    if write:
        # Whatever happens from here on, a revert finds all that may have been added.
        save_record(given["record"], {**record, "routes": {**ours, **wanted}})
        host.ip.batch(
            [
                *(f"route del {to}" for to in drop),
                *(f"route replace {to} via {via} dev {device}" for to, via in add.items()),
            ]
        )
        have = host.ip.prefixes()
        for to, via in wanted.items():
            if have.get(to) != (via, device):
                raise ValueError(f"route {to}: wanted {via} {device}, found {have.get(to)}")
    return [difference("routes", lines(ours), lines(wanted))]


def put_back(record: Record, write: bool) -> list[dict[str, str]]:
    """Restore the kernel parameters that were found."""
    changed: dict[str, tuple[str, str]] = {}
    # Writing ip_forward changes the others: they come after it.
    for keys in ([FORWARD], [key for key in record["since"] if key != FORWARD]):
        since = {key: record["since"][key] for key in keys if key in record["since"]}
        changed.update(revert({**record, "since": since}, {}, write, ROOT)[0])
    wrong = mismatches({key: found for key, (_, found) in changed.items()}, ROOT)
    if wrong and write:
        raise SysctlError("; ".join(wrong))
    before, after = ({key: pair[end] for key, pair in changed.items()} for end in (0, 1))
    return [runtime_diff(before, after)] if changed else []


def stop(record: Record, host: Host, write: bool) -> list[dict[str, str]]:
    """Remove the table and its service, which a record names."""
    if not record.get("unit"):
        return []
    nft = host.nft()
    if write:
        host.systemctl("disable", "--quiet", "--now", record["unit"])
    if not nft.has_table():
        return []
    if write:
        nft.delete()
        if nft.has_table():
            raise ValueError(f"table {FAMILY} {TABLE}: wanted none, found it")
    return [difference(f"nftables table {TABLE}", ruleset(record["translation"]), "")]


def leave(record: Record, host: Host, write: bool) -> list[dict[str, str]]:
    """Remove the routes."""
    routed = record.get("routes", {})
    drop = [to for to in host.ip.prefixes() if to in routed] if routed else []
    if drop and write:
        host.ip.batch(f"route del {to}" for to in drop)
        if left := [to for to in drop if to in host.ip.prefixes()]:
            raise ValueError(f"routes: wanted none to {' '.join(left)}, found them")
    return [difference("routes", lines({to: routed[to] for to in drop}), "")] if drop else []
