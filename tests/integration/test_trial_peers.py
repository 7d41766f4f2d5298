"""Who a server takes its peer for, over namespaces; what a host shows of itself."""

from __future__ import annotations

import secrets
import socket
import struct
import subprocess

import pytest
from agents import CLIENT, CONTROL, SERVER
from beds import Bed

from bench.agent.trials import peers
from bench.claims.ends import Look
from bench.errors import LabError
from bench.hosts.trials import Trials

NONCE = secrets.token_hex(16)
BOTH = {"nonce": NONCE, "control": [SERVER, CONTROL]}


@pytest.fixture
def trials(bed: Bed):
    with Trials(bed.connect) as made:
        yield made


def both(trials: Trials, bed: Bed, **changed):
    hosts = bed.inventory().hosts
    server = trials.begin(
        hosts["server"], "peers", side="server", endpoints=[[SERVER, 5000], [SERVER, 5001]], **BOTH
    )
    client = trials.begin(
        hosts["client"], "peers", side="client", source=CLIENT, **{**BOTH, **changed}
    )
    return server, client


def test_a_server_sees_who_connects(trials: Trials, bed: Bed) -> None:
    server, client = both(trials, bed)
    targets = [[SERVER, 5001], [SERVER, 5000]]
    told = trials.together({server: {"count": 2, "within": 5}, client: {"targets": targets}})
    assert {one["port"] for one in told[server]["seen"]} == {5000, 5001}
    assert {(one["peer"], one["header"]) for one in told[server]["seen"]} == {(CLIENT, None)}
    assert [one[0] for one in told[client]["opened"]] == [CLIENT, CLIENT]


def test_a_client_goes_nowhere_else(trials: Trials, bed: Bed) -> None:
    _, client = both(trials, bed)
    with pytest.raises(LabError, match="port 9 belongs to no server of this experiment"):
        client.go(targets=[[SERVER, 9]])


@pytest.mark.parametrize("routers", [[], ["198.18.1.2"]])
def test_a_server_behind_a_router_sees_the_router(trials: Trials, bed: Bed, routers) -> None:
    bed.net.run("client", "nft", "add", "table", "ip", "peers")
    chain = "type nat hook postrouting priority 100;"
    bed.net.run("client", "nft", f"add chain ip peers c {{ {chain} }}")
    rule = f"ip saddr {CLIENT} ip daddr {SERVER} snat to 198.18.1.2"
    bed.net.run("client", "nft", f"add rule ip peers c {rule}")
    server, client = both(trials, bed, routers=routers)
    asked = {"targets": [[SERVER, 5000]]}
    if not routers:
        with pytest.raises(LabError, match=r"a relay: it sees 198[.]18[.]1[.]2 "):
            client.go(**asked)
        return
    told = trials.together({server: {"count": 1, "within": 5}, client: asked})
    assert [one["peer"] for one in told[server]["seen"]] == routers


def test_a_server_of_another_experiment_is_refused(trials: Trials, bed: Bed) -> None:
    _, client = both(trials, bed, nonce=secrets.token_hex(16))
    with pytest.raises(LabError, match="is not a server agent of this run"):
        client.go(targets=[[SERVER, 5000]])


def header(family: int, address: str) -> bytes:
    kind = socket.AF_INET if family == 1 else socket.AF_INET6
    packed = socket.inet_pton(kind, address)
    body = packed + packed + struct.pack(">HH", 1234, 5000)
    return peers.SIGNATURE + struct.pack(">BBH", 0x21, family << 4 | 1, len(body)) + body


@pytest.mark.parametrize(("family", "address"), [(1, "198.18.1.7"), (2, "fd63:6f6e:6e6c:1::7")])
def test_a_proxy_header_names_the_client(family: int, address: str) -> None:
    assert peers.address_in(header(family, address)) == address
    assert peers.address_in(header(family, address)[:18]) is None
    assert peers.address_in(b"x" + header(family, address)) is None


def test_a_proxy_header_reaches_the_server(trials: Trials, bed: Bed) -> None:
    server, _ = both(trials, bed)
    sender = (
        f"import socket, sys; s = socket.create_connection(('{SERVER}', 5000)); "
        "s.sendall(bytes.fromhex(sys.argv[1])); s.recv(1)"
    )
    words = [*bed.net.enter("client"), "python3", "-c", sender, header(1, "198.18.9.9").hex()]
    child = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        seen = server.go(count=1, within=10)["seen"]
    finally:
        child.wait(10)
    assert seen == [{"port": 5000, "peer": CLIENT, "header": "198.18.9.9"}]


def test_a_host_shows_its_listeners_and_its_processes(trials: Trials, bed: Bed) -> None:
    both(trials, bed)
    look = Look(trials, bed.inventory().hosts["server"])
    assert look.listening() == {5000, 5001, CONTROL}
    assert look.pss_bytes("python3") > 1 << 20
    assert "TCP: inuse" in look.text("sockstat")
    with pytest.raises(LabError, match="texts: got 'passwd', expected one of ss_s"):
        look.text("passwd")
