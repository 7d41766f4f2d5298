"""The client address that the server sees behind each kind of frontend."""

import collections
import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import testinfra
from conftest import PROJECT, Variables
from testinfra.host import Host

testinfra_hosts = ["ansible://clients"]

INVENTORY = PROJECT / "molecule" / "inventory-paths"
CONNECTIONS = 60
"""Number of connections held at once through each frontend of each proxy."""

UNIT = "connlab-proxy-peer"

# Sends each client the source address that the server sees, and the PROXY header; holds all
# connections.
SERVER = """
import json, select, socket, sys
listeners = [socket.create_server((sys.argv[1], port)) for port in (5000, 5001, 5002)]
held = []
while True:
    for listener in select.select(listeners, [], [])[0]:
        caller, peer = listener.accept()
        caller.settimeout(5)
        header = ""
        if listener is listeners[1]:
            header = caller.recv(16, socket.MSG_WAITALL)
            header += caller.recv(int.from_bytes(header[14:16], "big"), socket.MSG_WAITALL)
        said = {"peer": peer, "header": header and header.hex()}
        caller.sendall(json.dumps(said).encode() + b"\\n")
        held.append(caller)
"""
CLIENT = """
import json, socket, sys
held, seen = [], []
for _ in range(int(sys.argv[3])):
    link = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
    held.append(link)
    seen.append({"own": link.getsockname(), **json.loads(link.makefile().readline())})
print(json.dumps(seen))
"""
# proxy-protocol.txt of haproxy, section 2.2: signature; version 2, command PROXY; TCP over IPv4.
SIGNATURE = "0d0a0d0a000d0a515549540a" + "21" + "11" + "000c"


def other(name: str) -> Host:
    """Return another host of the lab."""
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=str(INVENTORY))


def about(name: str) -> Variables:
    """Return another host's variables."""
    return dict(other(name).ansible.get_variables())


@pytest.fixture(scope="module", autouse=True)
def listening() -> Iterator[None]:
    """Listen on the frontends' ports on the server, and stop afterwards."""
    server = other("server1")
    command = f"python3 -c {shlex.quote(SERVER)} {about('server1')['lab_data_address']}"
    server.check_output(f"sudo -n systemd-run --quiet --collect --unit={UNIT} {command}")
    try:
        server.check_output(
            "for i in $(seq 100); do ss -Hltn 'sport = :5002' | grep -q . && exit; "
            "sleep 0.1; done; exit 1"
        )
        yield
    finally:
        server.run(f"sudo -n systemctl stop {UNIT}")


def seen(host: Host, proxy: str, port: int) -> list[dict[str, Any]]:
    """Return the server's answers on connections held through a proxy at the same time."""
    address = about(proxy)["lab_data_address"]
    command = f"python3 -c {shlex.quote(CLIENT)} {address} {port} {CONNECTIONS}"
    return list(json.loads(host.check_output(command)))


def sources(proxy: str) -> set[str]:
    """Return a proxy's own addresses."""
    block, _, first = about(proxy)["lab_data_address"].rpartition(".")
    return {f"{block}.{int(first) + at}" for at in range(int(about(proxy)["lab_proxy_addresses"]))}


@pytest.mark.parametrize("proxy", ["proxy1", "proxy2"])
def test_plain_shows_the_proxys_addresses_in_equal_parts(host: Host, proxy: str) -> None:
    counts = collections.Counter(each["peer"][0] for each in seen(host, proxy, 5000))
    assert set(counts) == sources(proxy)
    processes = len(other(proxy).check_output("pgrep -x haproxy").split())
    # Each process balances its own connections.
    assert max(counts.values()) - min(counts.values()) <= processes


@pytest.mark.parametrize("proxy", ["proxy1", "proxy2"])
def test_the_header_has_the_clients_own_address_and_port(host: Host, proxy: str) -> None:
    for each in seen(host, proxy, 5001):
        header = bytes.fromhex(each["header"])
        assert header[:16].hex() == SIGNATURE
        address, port = ".".join(map(str, header[16:20])), int.from_bytes(header[24:26], "big")
        assert [address, port] == each["own"]
        assert each["peer"][0] in sources(proxy)


def test_transparent_shows_the_clients_address(host: Host, variables: Variables) -> None:
    found = seen(host, "proxy1", 5002)
    assert {each["peer"][0] for each in found} == {variables["lab_data_address"]}
    assert len({each["peer"][1] for each in found}) == CONNECTIONS


def test_only_the_first_proxy_is_transparent(host: Host) -> None:
    address = about("proxy2")["lab_data_address"]
    code = "import socket,sys; print(socket.socket().connect_ex((sys.argv[1], 5002)))"
    # ECONNREFUSED of errno(3) on Linux.
    assert host.check_output(f"python3 -c '{code}' {address}") == "111"
