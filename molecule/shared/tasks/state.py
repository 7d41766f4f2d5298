"""Print all settings that tuning may change on a machine, as JSON lists of "name = value".

They are sysctls, limits, files, addresses, routes and nftables tables. The script runs as the
login, so that the limits are those of its session; sudo gives it root's rights.
"""

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

# Keys that change by themselves, each with the reason.
MOVING = {
    r"fs\.(dentry-state|file-nr|inode-nr|inode-state|aio-nr)": "counts what is open and cached",
    r"fs\.quota\..*": "counts file system events",
    r"kernel\.(ns_last_pid|pty\.nr|random\.uuid|random\.entropy_avail)": "changes per process",
    r"kernel\.random\.boot_id": "changes with each boot, and is not a setting",
    r"kernel\.perf_(event_max_sample_rate|cpu_time_max_percent)": "lowered by the kernel on load",
    r"net\.netfilter\.nf_conntrack_count": "counts tracked connections",
    r"net\.ipv[46]\.(conf|neigh)\.(?!(all|default|lo|data0|mgmt0)\.).*": "belongs to an "
    "interface, and other labs on this machine create and remove theirs",
}
DIRECTORIES = (
    "/etc/connlab",
    "/etc/modules-load.d",
    "/etc/nftables.d",
    "/etc/sysctl.d",
    "/etc/security",
    "/etc/systemd",
    "/etc/sysctl.conf",
    "/run/systemd/system",
    "/run/sysctl.d",
)

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def run(*command: str) -> str:
    """Return the output of a command that runs as root; keys unreadable to root are left out."""
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    environment = {**os.environ, "PATH": PATH}
    done = subprocess.run(
        [*prefix, *command], capture_output=True, text=True, check=False, env=environment
    )
    if not done.stdout:
        raise SystemExit(f"{command}: {done.stderr}")
    return done.stdout


def sysctls() -> dict[str, str]:
    """Return every sysctl that does not change by itself."""
    moving = re.compile("|".join(f"(?:{pattern})" for pattern in MOVING))
    rows = [line.split(" = ", 1) for line in run("sysctl", "-a").splitlines() if " = " in line]
    return {row[0]: row[1] for row in rows if not moving.fullmatch(row[0])}


def files(directories: list[str]) -> dict[str, str]:
    """Return the digest of each file, and the word "directory" for each directory."""
    listed = run("find", *[each for each in directories if Path(each).exists()], "-print0")
    result = {}
    for path in filter(None, listed.split("\0")):
        kind = "directory" if Path(path).is_dir() else "file"
        if kind == "file" and os.access(path, os.R_OK):
            kind = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        result[path] = kind
    return result


def addresses() -> dict[str, str]:
    """Return addresses and routes of data0 and lo, policy rules, and nftables tables."""
    links = json.loads(run("ip", "-j", "addr", "show"))
    found = {
        f"{link['ifname']} {entry['local']}/{entry['prefixlen']}": entry["scope"]
        for link in links
        if link["ifname"] in ("lo", "data0")
        for entry in link["addr_info"]
    }
    # Routes of all tables, if they have no device (unreachable routes) or one of the lab's.
    for route in json.loads(run("ip", "-j", "-4", "route", "show", "table", "all")):
        device = route.get("dev", "")
        if device in ("", "lo", "data0"):
            table, kind = route.get("table", "main"), route.get("type", "unicast")
            found[f"route {table} {kind} {route['dst']} dev {device}"] = route.get("gateway", "")
    if "data0" in {link["ifname"] for link in links}:
        rules = run("ip", "-N", "rule", "show").splitlines()
        found |= {f"rule {rule.strip()}": "" for rule in rules}
    # The machine underneath has its own tables, if it has nft at all.
    if shutil.which("nft", path=PATH) and "data0" in {link["ifname"] for link in links}:
        tables = json.loads(run("nft", "-j", "list", "tables"))["nftables"]
        named = [entry["table"] for entry in tables if "table" in entry]
        found |= {f"table {each['family']} {each['name']}": "" for each in named}
    return found


soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
state = {
    "sysctl": sysctls(),
    "limits": {"soft": str(soft), "hard": str(hard)},
    "files": files([*DIRECTORIES, *sys.argv[1:]]),
    "addresses": addresses(),
}
print(json.dumps({part: [f"{k} = {v}" for k, v in rows.items()] for part, rows in state.items()}))
