"""A host's limits and addresses for a proxy, and haproxy's check of a configuration.

Runs on the hosts: standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.connlab_proxy_processes import ProxyError, Run, cause, checked

HAPROXY = "/usr/sbin/haproxy"
# A service inherits PID 1's limit, which LimitNOFILE= raises if PID 1 may. Root in a service can
# raise its limit to the same value, so the script tries that.
LIMIT = """
import resource
nofile = resource.RLIMIT_NOFILE
soft, hard = resource.getrlimit(nofile)
with open("/proc/sys/fs/nr_open") as stream:
    most = int(stream.read())
try:
    resource.setrlimit(nofile, (soft, max(hard, most)))
except (ValueError, OSError):
    pass
print(resource.getrlimit(nofile)[1])
"""


def service_nofile(run: Run) -> int:
    """Return the hard nofile limit that a service of this host can have, measured in a service."""
    out = checked(
        run,
        *("systemd-run", "--quiet", "--wait", "--pipe", "--collect"),
        *(sys.executable or "/usr/bin/python3", "-c", LIMIT),
    )
    return int(out)


def look(run: Run, addresses: Iterable[str]) -> dict[str, Any]:
    """Return this host's limits, ports and missing addresses for a proxy."""
    if not Path("/run/systemd/system").is_dir():
        raise ProxyError("systemd: not running: expected the host's init")
    missing = []
    for address in addresses:
        code, out, _ = run(["ip", "-j", "route", "get", address])
        if code or json.loads(out)[0].get("type") != "local":
            missing.append(address)
    ports = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    return {
        "installed": os.access(HAPROXY, os.X_OK),
        "cores": len(os.sched_getaffinity(0)),
        "nofile": service_nofile(run),
        "nr_open": int(Path("/proc/sys/fs/nr_open").read_text(encoding="ascii")),
        "ports": [int(word) for word in ports.split()],
        "missing": missing,
    }


def check_config(run: Run, text: str) -> None:
    """Let haproxy check a configuration. Errors: ProxyError with its first alert."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".cfg") as stream:
        stream.write(text)
        stream.flush()
        code, out, err = run(["env", "CONNLAB_PROXY=1", HAPROXY, "-c", "-f", stream.name])
    if code:
        raise ProxyError(f"haproxy -c: {cause(out + err) or err.strip()}")
