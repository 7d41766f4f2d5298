"""Clients reach the routed addresses through their router, whose addresses the server sees."""

import collections
import json
import shlex

import testinfra
from conftest import PROJECT, Variables
from testinfra.host import Host

testinfra_hosts = ["ansible://clients"]

INVENTORY = PROJECT / "molecule" / "inventory-paths"
CONNECTIONS = 40
"""Number of connections to each of the server's addresses."""

UNIT = "connlab-paths-peer"

# Sends each client the source address that the server sees.
SERVER = """
import socket, sys
with socket.create_server(("0.0.0.0", 7000)) as listener:
    listener.settimeout(20)
    for _ in range(int(sys.argv[1])):
        caller, address = listener.accept()
        with caller:
            caller.sendall(address[0].encode())
"""
CLIENT = """
import json, socket, sys
seen = []
for address in sys.argv[2:]:
    for _ in range(int(sys.argv[1])):
        with socket.create_connection((address, 7000), 5) as link:
            seen.append((address, link.makefile().read()))
print(json.dumps(seen))
"""


def other(name: str) -> Host:
    """Return another host of the lab."""
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=str(INVENTORY))


def test_the_route_leads_through_the_router(host: Host, variables: Variables) -> None:
    router = other("router1").ansible.get_variables()["lab_data_address"]
    for address in other("server1").ansible.get_variables()["lab_routed_addresses"]:
        (route,) = json.loads(host.check_output(f"ip -j route get {address}"))
        assert (route["gateway"], route["dev"]) == (router, variables["lab_data_interface"])


def test_networkd_brings_the_route_back_at_boot(host: Host, variables: Variables) -> None:
    interface, lab = variables["lab_data_interface"], variables["lab_name"]
    path = f"/etc/systemd/network/10-{interface}.network.d/91-{lab}-routes.conf"
    lines = host.file(path).content_string.splitlines()
    assert "Destination=198.19.0.0/16" in lines
    host.check_output("sudo -n ip route del 198.19.0.0/16")
    host.check_output("sudo -n systemctl restart systemd-networkd")
    host.check_output(
        "for i in $(seq 100); do ip route | grep -q ^198.19.0.0/16 && exit; sleep 0.1; done; exit 1"
    )


def test_the_server_sees_the_routers_addresses_in_turn(host: Host, variables: Variables) -> None:
    server = other("server1")
    about = server.ansible.get_variables()
    router = other("router1").ansible.get_variables()["lab_data_address"]
    routed, own = about["lab_routed_addresses"], about["lab_data_address"]
    total = CONNECTIONS * (len(routed) + 1)
    command = f"python3 -c {shlex.quote(SERVER)} {total}"
    server.check_output(f"sudo -n systemd-run --quiet --collect --unit={UNIT} {command}")
    try:
        server.check_output(
            "for i in $(seq 100); do ss -Hltn 'sport = :7000' | grep -q . && exit; "
            "sleep 0.1; done; exit 1"
        )
        addresses = " ".join([*routed, own])
        seen = json.loads(
            host.check_output(f"python3 -c {shlex.quote(CLIENT)} {CONNECTIONS} {addresses}")
        )
    finally:
        server.run(f"sudo -n systemctl stop {UNIT}")
    counts = collections.Counter(map(tuple, seen))
    assert counts.pop((own, variables["lab_data_address"])) == CONNECTIONS
    # Each rule takes the next address for each new connection, whichever destination it has.
    through = collections.Counter(source for _, source in counts.elements())
    assert through == {
        router: CONNECTIONS * len(routed) // 2,
        router.removesuffix(".1") + ".2": CONNECTIONS * len(routed) // 2,
    }
