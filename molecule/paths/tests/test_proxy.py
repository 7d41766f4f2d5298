"""Each proxy runs as many processes as its connections require, each with the planned values."""

import json
import shlex
from collections.abc import Callable

from conftest import Variables
from testinfra.host import Host
from tune_loader import load

testinfra_hosts = ["ansible://proxies"]

formulas = load("reverse_proxy", "filter_plugins", "reverse_proxy")

PORTS = {4999, 5000, 5001}
# Asks every process for `show info`, as the login.
ASK = """
import glob, json, socket
said = {}
for path in glob.glob("/run/connlab-proxy/*.sock"):
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(5)
        link.connect(path)
        link.sendall(b"show info\\n")
        lines = link.makefile().read().splitlines()
    said[path] = dict(line.split(": ", 1) for line in lines if ": " in line)
print(json.dumps(said))
"""


def ports(variables: Variables) -> set[int]:
    """Return the ports that a proxy listens on; the first proxy has the transparent one too."""
    first = variables["groups"]["proxies"][0] == variables["inventory_hostname"]
    return PORTS | {5002} if first else PORTS


def addresses(variables: Variables) -> list[str]:
    """Return a proxy's own addresses on the data plane."""
    block = variables["lab_data_address"].removesuffix(".1")
    return [f"{block}.{number + 1}" for number in range(int(variables["lab_proxy_addresses"]))]


def test_the_processes_are_those_that_the_limits_ask_for(
    host: Host, variables: Variables, record: Callable[[str], Variables]
) -> None:
    kept = record("reverse_proxy")
    probe = {
        "cores": int(host.check_output("nproc")),
        # The hard limit of a service: tune_limits grants no more than a service can have.
        "nofile": int(record("tune_limits")["settings"]["nofile.hard"]["set"]),
    }
    share = int(variables["connections"]) // len(variables["groups"]["proxies"])
    listeners = len(ports(variables)) * len(addresses(variables))
    plan = formulas.reverse_proxy_plan(probe, share, "", listeners)
    assert {name: entry["set"] for name, entry in kept["settings"].items()} == {
        "processes": str(plan["processes"]),
        "maxconn": str(plan["maxconn"]),
    }
    assert kept["reported"] == {}
    said = json.loads(host.check_output(f"python3 -c {shlex.quote(ASK)}"))
    assert set(said) == {
        f"/run/connlab-proxy/{number}.sock" for number in range(1, plan["processes"] + 1)
    }
    for number in range(1, plan["processes"] + 1):
        unit = host.service(f"connlab-proxy@{number}")
        assert unit.is_running
        assert unit.is_enabled
        shown = said[f"/run/connlab-proxy/{number}.sock"]
        assert int(shown["Maxconn"]) == plan["maxconn"]
        assert int(shown["Maxsock"]) <= plan["nofile"]
        limits = host.check_output(f"cat /proc/{shown['Pid']}/limits")
        (line,) = [each for each in limits.splitlines() if each.startswith("Max open files")]
        assert int(line.split()[4]) == plan["nofile"]


def test_they_listen_on_the_data_plane_alone(host: Host, variables: Variables) -> None:
    shown = host.check_output("sudo -n ss -Hltnp")
    heard = [line.split()[3] for line in shown.splitlines() if '"haproxy"' in line]
    wanted = {f"{each}:{port}" for each in addresses(variables) for port in ports(variables)}
    assert set(heard) == wanted
    count = len(heard) // len(wanted)
    assert all(heard.count(each) == count for each in wanted)


def test_they_have_no_right_that_they_do_not_need(host: Host, variables: Variables) -> None:
    # Bit 13 is CAP_NET_RAW (include/uapi/linux/capability.h).
    rights = 1 << 13 if 5002 in ports(variables) else 0
    pids = host.check_output("pgrep -x haproxy").split()
    assert pids
    for pid in pids:
        status = host.check_output(f"cat /proc/{pid}/status")
        rows = dict(line.split(":", 1) for line in status.splitlines())
        assert int(rows["CapEff"], 16) == int(rows["CapBnd"], 16) == rights
        assert "0" not in rows["Uid"].split()


def test_debians_own_service_is_off(host: Host) -> None:
    service = host.service("haproxy")
    assert not service.is_running
    assert not service.is_enabled
    assert "connlab" not in host.file("/etc/haproxy/haproxy.cfg").content_string


def test_answers_are_led_back_on_the_first_proxy_alone(host: Host, variables: Variables) -> None:
    rules = [
        rule
        for rule in json.loads(host.check_output("ip -j rule show"))
        if rule["priority"] == 5002
    ]
    if 5002 not in ports(variables):
        assert rules == []
        return
    (rule,) = rules
    assert (rule["sport"], rule["iif"]) == (5002, variables["lab_data_interface"])
    (route,) = json.loads(host.check_output("ip -j route show table 5002"))
    assert (route["type"], route["dst"]) == ("local", "default")


def test_networkd_brings_the_rule_back(host: Host, variables: Variables) -> None:
    if 5002 not in ports(variables):
        shown = host.run(f"ls /etc/systemd/network/*/91-{variables['lab_name']}-proxy.conf")
        assert shown.rc != 0
        return
    host.check_output("sudo -n ip rule del priority 5002")
    host.check_output("sudo -n systemctl restart systemd-networkd")
    host.check_output(
        "for i in $(seq 100); do ip rule | grep -q ^5002: && exit; sleep 0.1; done; exit 1"
    )
