"""The parts of a translating router or its client: nftables table, kernel parameters, routes.

Each function sets one of them, reads it back, and returns the differences as Ansible shows them
with --diff. Errors: ValueError or SysctlError naming the setting that was not applied.
Runs on the hosts: standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.connlab_ip import Ip
from ansible.module_utils.connlab_nft import FAMILY, TABLE, Nft, Translation, ruleset
from ansible.module_utils.connlab_record import FORMAT, Record, difference, lines, save_record
from ansible.module_utils.connlab_sysctl_tree import (
    PROC_SYS,
    SysctlError,
    apply,
    claim,
    mismatches,
    ours,
    read_key,
    remember,
    revert,
    runtime_diff,
    settle,
    strays,
    undo,
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
    """This host's tools, which are looked up only if they are needed."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.ip = Ip(module)

    def nft(self) -> Nft:
        """Return nft(8)."""
        return Nft(self.module)

    def systemctl(self, *words: str) -> bool:
        """Run systemctl(1), and return whether it succeeded."""
        path = self.module.get_bin_path("systemctl", required=True)
        return int(self.module.run_command([path, *words])[0]) == 0


def refuse(given: Mapping[str, Any], record: Record, host: Host) -> None:
    """Refuse a table or route of another program. Errors: ValueError, before any change."""
    if given["translation"] and not tables(record) and host.nft().has_table():
        raise ValueError(f"table {FAMILY} {TABLE}: found one that is not the lab's")
    have = host.ip.prefixes() if given["routes"] else {}
    for to, via in given["routes"].items():
        if to in have and to not in record.get("routes", {}):
            way = " ".join(filter(None, have[to]))
            raise ValueError(f"route {to}: wanted {via}, found {way}, which is not the lab's")


def tables(record: Record) -> list[Translation]:
    """Return the translations that the role may have loaded: several during a change."""
    known = [record["translation"]] if record.get("translation") else []
    return known + [each for each in record.get("tables", []) if each not in known]


def strange_table(record: Record, host: Host) -> bool:
    """Return whether the lab's table differs from the ones that the role loaded."""
    nft = host.nft()
    if not tables(record) or record["format"] < FORMAT or not nft.has_table():
        return False
    return nft.translation() not in tables(record)


def gateways(record: Record, to: str) -> set[str]:
    """Return the gateways that the role gave a route: several during a change."""
    return {record.get("routes", {}).get(to), *record.get("gateways", {}).get(to, [])} - {None}


def strange_routes(record: Record, host: Host) -> dict[str, str]:
    """Return the current gateways of those of the role's routes that were changed since."""
    known = {**record.get("routes", {}), **record.get("gateways", {})}
    have = host.ip.prefixes() if known and record["format"] == FORMAT else {}
    return {
        to: " ".join(filter(None, have[to]))
        for to in known
        if to in have and have[to][0] not in gateways(record, to)
    }


def remarks(given: Mapping[str, Any], record: Record, host: Host) -> list[str]:
    """Return one line for the table and each route that was changed since the last run."""
    said = []
    if record.get("unit") and strange_table(record, host):
        what = "reloaded" if given["translation"] else "kept"
        said.append(f"table {FAMILY} {TABLE}: changed since the tune: {what}")
    for to, way in strange_routes(record, host).items():
        via = given["routes"].get(to)
        what = f"set to {via}" if via else "kept"
        said.append(f"route {to}: found {way}, changed since the tune: {what}")
    return said


def kept(record: Record, host: Host) -> list[str]:
    """Return one line for the table and each route that a revert keeps."""
    said = []
    if record.get("unit") and strange_table(record, host):
        said.append(f"table {FAMILY} {TABLE}: kept, changed since the tune")
    for to, way in strange_routes(record, host).items():
        via = record.get("routes", {}).get(to, "none")
        said.append(f"route {to}: kept {way}, changed since the tune (set {via}, found none)")
    return said


def translate(given: Mapping[str, Any], host: Host, write: bool) -> list[dict[str, str]]:
    """Load the wanted table and read it back; return the differences."""
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


def parameters(
    given: Mapping[str, Any], record: Record, write: bool
) -> tuple[list[dict[str, str]], list[str]]:
    """Set the kernel parameters and read them back.

    Returns the differences, and a line for each parameter that was changed since the tune.
    """
    wanted: dict[str, str] = given["sysctls"]
    now = {key: read_key(key, ROOT) for key in wanted}
    stale = {key: value for key, value in wanted.items() if now[key] != value}
    # Keys that an earlier run set and this one does not want are restored.
    needed = {*wanted, *carried(ROOT)}
    since = {key: at for key, at in record["since"].items() if key not in needed}
    given_up = {**record, "since": since}
    keep = strays(given_up, {}, ROOT)
    undone = revert(given_up, {}, write, ROOT, keep)[0]
    for key in since if write else ():
        del record["since"][key]
    found = {key: value for key, value in now.items() if value is not None}
    known = {key: value for key, value in wanted.items() if key in found}
    if stale:
        along = {key: read_key(key, ROOT) or "" for key in carried(ROOT) if FORWARD in stale}
        remember(record, {**found, **along}, "host")
    said = [*keep.values(), *claim(record, _recorded(known, record), found)]
    if stale and write:
        save_record(given["record"], record)

        def load() -> str:
            for key, value in wanted.items():
                if key in stale:
                    write_key(key, value, ROOT)
            return ""

        apply(wanted, load, ROOT, along=carried(ROOT))
    for key in carried(ROOT):
        if key in record["since"] and (FORWARD in stale or ours(record, key) is None):
            record["settings"][key]["set"] = read_key(key, ROOT) or ""
    settle(record)
    if not stale and not undone:
        return [], said
    old = {**{key: now[key] for key in stale}, **{k: pair[0] for k, pair in undone.items()}}
    new = {**stale, **{key: pair[1] for key, pair in undone.items()}}
    return [runtime_diff(old, new)], said


def _recorded(values: Mapping[str, str], record: Record) -> dict[str, str]:
    """Return the values of keys in a record; a key that had its value from the start is not."""
    return {key: value for key, value in values.items() if key in record["since"]}


def lead(given: Mapping[str, Any], record: Record, host: Host, write: bool) -> list[dict[str, str]]:
    """Add the routes that are missing and read them back; return the differences."""
    wanted, known, device = given["routes"], record.get("routes", {}), given["interface"]
    if not wanted and not known:
        return []
    have = host.ip.prefixes()
    strange = strange_routes(record, host)
    drop = [to for to in known if to not in wanted and to in have and to not in strange]
    add = {to: via for to, via in wanted.items() if have.get(to) != (via, device)}
    if not drop and not add:
        return []
    if write:
        # From here on the record has everything that may have been added, for a revert.
        pending = {to: sorted(gateways(record, to)) for to in {**known, **wanted}}
        record["gateways"] = pending
        save_record(given["record"], {**record, "routes": {**known, **wanted}})
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
    return [difference("routes", lines(known), lines(wanted))]


def expect_along(record: Record, keep: Collection[str]) -> bool:
    """Record the values that the kernel will give to the keys that change with ip_forward.

    Otherwise an interrupted revert would take them for another program's. Returns whether the keys
    are going to change.
    """
    if FORWARD not in record["since"] or FORWARD in keep:
        return False
    found = record["settings"][FORWARD]["found"]
    if read_key(FORWARD, ROOT) in (None, found):
        return False
    for key in carried(ROOT):
        if key in record["since"] and key not in keep:
            value = found if key.endswith(".forwarding") else {"0": "1"}.get(found, "0")
            entry = record["settings"][key]
            entry["earlier"] = sorted({*entry.get("earlier", []), value})
    return True


def put_back(record: Record, write: bool, path: str) -> tuple[list[dict[str, str]], list[str]]:
    """Restore the kernel parameters that were found.

    path: the record's file, to which the intermediate values are written.
    Returns the differences, and a line for each parameter that was changed since the tune.
    Errors: SysctlError naming the keys that did not take their old values; all others are restored.
    """
    changed: dict[str, tuple[str, str]] = {}
    keep = strays(record, {}, ROOT)
    values = {key: read_key(key, ROOT) for key in keep}
    wrong = []
    if write and expect_along(record, keep):
        save_record(path, record)
    # Writing ip_forward changes the other keys, so they come after it.
    for keys in ([FORWARD], [key for key in record["since"] if key != FORWARD]):
        since = {key: record["since"][key] for key in keys if key in record["since"]}
        try:
            changed.update(revert({**record, "since": since}, {}, write, ROOT, keep)[0])
        except SysctlError as error:
            wrong.append(str(error))
    if write:
        wrong += undo(values, ROOT)
        wrong += mismatches({key: found for key, (_, found) in changed.items()}, ROOT)
        if wrong:
            raise SysctlError("; ".join(wrong))
    before, after = ({key: pair[end] for key, pair in changed.items()} for end in (0, 1))
    return [runtime_diff(before, after)] if changed else [], list(keep.values())


def stop(record: Record, host: Host, write: bool) -> list[dict[str, str]]:
    """Remove the table and the service that a record names.

    A table that was changed since stays. Its service is then not stopped either, because that would
    delete the table.
    """
    if not record.get("unit"):
        return []
    nft = host.nft()
    strange = strange_table(record, host)
    if write:
        now = [] if strange else ["--now"]
        host.systemctl("disable", "--quiet", *now, record["unit"])
    if strange or not nft.has_table():
        return []
    if write:
        nft.delete()
        if nft.has_table():
            raise ValueError(f"table {FAMILY} {TABLE}: still present after removal")
    text = ruleset(record["translation"]) if record.get("translation") else ""
    return [difference(f"nftables table {TABLE}", text, "")]


def leave(record: Record, host: Host, write: bool) -> list[dict[str, str]]:
    """Remove the routes, except those that were changed since."""
    routed = record.get("routes", {})
    strange = strange_routes(record, host)
    have = host.ip.prefixes() if routed else {}
    drop = [to for to in have if to in routed and to not in strange]
    if drop and write:
        host.ip.batch(f"route del {to}" for to in drop)
        if left := [to for to in drop if to in host.ip.prefixes()]:
            raise ValueError(f"routes to {' '.join(left)}: still present after removal")
    return [difference("routes", lines({to: routed[to] for to in drop}), "")] if drop else []
