"""Every kernel parameter of the role has its value, on the host or on the machine underneath."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import Variables
from testinfra.host import Host
from tune_loader import load

formulas = load("tune_sysctl", "filter_plugins", "tune_sysctl")
shares = load("lab_common", "filter_plugins", "connlab_share")


def here(key: str, variables: Variables) -> str | None:
    """Return a parameter of the machine underneath, which runs this test, or None without one."""
    if not variables["groups"].get("underlay"):
        return None
    path = Path("/proc/sys") / key.replace(".", "/")
    return formulas.normal(path.read_text()) if path.exists() else None


def on_host(host: Host) -> dict[str, tuple[str, bool]]:
    """Return each parameter that the host sees: its value, and whether root may write it there."""
    paths = " ".join(f"/proc/sys/{key.replace('.', '/')}" for key in formulas.KEYS)
    script = f"for p in {paths}; do test -e $p && (cat $p; test -w $p; echo $? $p); done; true"
    lines = host.check_output(f"sudo -n sh -c '{script}'").splitlines()
    seen = {}
    for value, judged in zip(lines[::2], lines[1::2], strict=True):
        status, path = judged.split()
        key = path.removeprefix("/proc/sys/").replace("/", ".")
        seen[key] = (formulas.normal(value), status == "0")
    return seen


def expected(host: Host, variables: Variables, shared: bool) -> dict[str, Any]:
    """Return the values that the inventory's number of connections requires."""
    groups = variables["groups"]
    all_shares = shares.connlab_shares(variables["connections"], groups)
    memory = int(host.check_output("grep MemTotal /proc/meminfo").split()[1])
    page = os.sysconf("SC_PAGESIZE")  # hosts and the machine underneath are one kernel
    own = all_shares[variables["inventory_hostname"]]
    sizes = (sum(all_shares.values()), max(all_shares.values())) if shared else (own, own)
    return {key: value.text for key, value in formulas.computed(*sizes, memory, page).items()}


def test_every_parameter_is_at_least_what_the_connections_ask_for(
    host: Host, variables: Variables, record: Callable[[str], Variables]
) -> None:
    settings = record("tune_sysctl")["settings"]
    seen = on_host(host)
    conntrack = "net.netfilter.nf_conntrack_max"
    loaded = conntrack in seen or here(conntrack, variables) is not None
    claimed = {key for key in formulas.KEYS if loaded or key not in formulas.IF_LOADED}
    assert set(settings) == claimed
    asked = {own: expected(host, variables, shared=not own) for own in (True, False)}
    for key in sorted(claimed):
        value, own = seen.get(key, (None, False))
        assert settings[key]["where"] == ("host" if own else "underlay"), key
        wanted = asked[own][key]
        now = value or here(key, variables)
        assert now is not None, key
        assert formulas.raised(key, now, wanted) == now, f"{key}: wanted {wanted}, found {now}"
        assert settings[key]["wanted"] == wanted, key
        held = settings[key]["set"]
        # Another lab may have raised a shared value since; a host's own values stay.
        assert now == (held if own else formulas.raised(key, now, held)), key


def test_nothing_was_left_unset(record: Callable[[str], Variables]) -> None:
    assert record("tune_sysctl")["reported"] == {}


def test_one_file_has_what_the_host_sets_at_boot(
    host: Host, variables: Variables, record: Callable[[str], Variables]
) -> None:
    text = host.file(f"/etc/sysctl.d/90-{variables['lab_name']}.conf").content_string
    rows = [line.split(" = ") for line in text.splitlines() if not line.startswith("#")]
    settings = record("tune_sysctl")["settings"]
    own = {key: entry["set"] for key, entry in settings.items() if entry["where"] == "host"}
    assert {key: value for key, value in rows} == own


def test_no_file_of_the_lab_is_in_etc_of_the_machine_underneath(variables: Variables) -> None:
    name = f"90-{variables['lab_name']}.conf"
    assert [str(path) for path in Path("/etc").rglob(name)] == []
