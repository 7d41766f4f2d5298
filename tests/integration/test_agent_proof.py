"""Every target proves itself before it is opened: what leads elsewhere gets one connection."""

import contextlib
import hashlib
import hmac
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent import futures

import pytest
from agents import CLIENT, CLIENT6, CONTROL, PORT, SERVER, SERVER6, block, until

from bench import wire
from bench.agent import control, handshake

STRANGER = """
import socket, sys, time
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=1024)
print("listening", flush=True)
listener.settimeout(0.2)
taken = []
until = time.monotonic() + float(sys.argv[3])
while time.monotonic() < until:
    try:
        taken.append(listener.accept()[0])
    except TimeoutError:
        pass
print(len(taken), flush=True)
"""
CLOSER = STRANGER.replace(
    "taken.append(listener.accept()[0])", "listener.accept()[0].close(); taken.append(1)"
)
RELAY = """
import socket, sys, threading
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=1024)
print("listening", flush=True)
def pump(a, b):
    try:
        while data := a.recv(4096):
            b.sendall(data)
        b.shutdown(socket.SHUT_WR)
    except OSError:
        pass
while True:
    one = listener.accept()[0]
    two = socket.create_connection((sys.argv[3], int(sys.argv[4])))
    for ends in ((one, two), (two, one)):
        threading.Thread(target=pump, args=ends, daemon=True).start()
"""


@pytest.fixture
def program(lab):
    """Starts a program on a host; it is ended with the test."""
    started = []

    def start(host, code, *words):
        argv = [*lab.net.enter(host), sys.executable, "-c", code, *map(str, words)]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "listening\n"
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def nft(lab):
    """Adds rules on a host, in a table that goes with the test."""
    tables = []

    def add(host, chain, *rules):
        lab.net.run(host, "nft", "add", "table", "ip", "proof")
        tables.append(host)
        lab.net.run(host, "nft", f"add chain ip proof c {{ {chain} }}")
        for rule in rules:
            lab.net.run(host, "nft", *f"add rule ip proof c {rule}".split())

    yield add
    for host in tables:
        lab.net.run(host, "nft", "delete", "table", "ip", "proof")


def refused(lab, **changed):
    client = lab.agent("client")
    client.send("prepare", spec=lab.client_spec(**changed))
    error = client.hear("error")
    assert error["kind"] == "refused"
    return error["message"]


NAT_OUT = "type nat hook output priority -100;"


def test_a_data_port_that_is_redirected_to_a_stranger_is_refused(lab, program, nft):
    stranger = program("server", STRANGER, SERVER, PORT + 7, 3)
    lab.serve(endpoints=[[SERVER, PORT], [SERVER, PORT + 1]])
    nft("client", NAT_OUT, f"tcp dport {PORT + 1} dnat to :{PORT + 7}")
    said = refused(lab, blocks=[block(101), block(100, target_port=PORT + 1)])
    assert said.startswith(f"{SERVER} port {PORT + 1} is not a server agent of this run")
    assert said.endswith(f"(from {CLIENT})")
    assert stranger.communicate()[0] == "1\n"


def test_a_data_port_that_leads_to_another_of_the_same_server_is_refused(lab, nft):
    lab.serve(endpoints=[[SERVER, PORT], [SERVER, PORT + 1]])
    nft("client", NAT_OUT, f"tcp dport {PORT + 1} dnat to :{PORT}")
    said = refused(lab, blocks=[block(101), block(100, target_port=PORT + 1)])
    assert said == f"{SERVER} port {PORT + 1} leads to {SERVER} port {PORT} (from {CLIENT})"


def test_a_relay_in_front_of_a_data_port_is_refused(lab, program, nft):
    program("server", RELAY, SERVER, PORT + 7, SERVER, PORT + 1)
    lab.serve(endpoints=[[SERVER, PORT], [SERVER, PORT + 1]])
    nft("client", NAT_OUT, f"tcp dport {PORT} dnat to :{PORT + 7}")
    said = refused(lab)
    assert said == f"{SERVER} port {PORT} leads to {SERVER} port {PORT + 1} (from {CLIENT})"


def in_between(address, port):
    """What is said of a port that somebody on the server's address passes on."""
    return (
        rf"^{address} port {port} is reached through a relay: it sees {SERVER} port \d+, "
        rf"this is {CLIENT} port \d+ \(from {CLIENT}\)$"
    )


@pytest.mark.parametrize("port", [PORT, CONTROL])
def test_a_relay_to_the_very_port_itself_is_refused_at_once(lab, program, nft, port):
    for number in range(2, 12):
        lab.net.run("client", "ip", "addr", "add", f"198.18.3.{number}/15", "dev", "data0")
    program("server", RELAY, SERVER, port + 7, SERVER, port)
    lab.serve()
    nft("client", NAT_OUT, f"tcp dport {port} dnat to :{port + 7}")
    others = [block(10, source=f"198.18.3.{number}") for number in range(2, 12)]
    assert re.search(in_between(SERVER, port), refused(lab, blocks=[block(10), *others]))
    # To the relay, and from it to the server; before it to the control port.
    assert lab.counter("server", "TcpPassiveOpens") == 2 + (port == PORT)


SNAT = "type nat hook postrouting priority 100;"


@pytest.mark.parametrize("routers", [[], ["198.18.201.1"], ["198.18.201.1", "198.18.1.2"]])
def test_translated_addresses_are_taken_where_they_are_a_routers(lab, nft, routers):
    server = lab.serve()
    nft("client", SNAT, f"ip saddr {CLIENT} tcp dport {{ {CONTROL}, {PORT} }} snat to 198.18.1.2")
    if "198.18.1.2" not in routers:
        said = refused(lab, routers=routers)
        assert said.startswith(f"{SERVER} port {CONTROL} is reached through a relay: ")
        assert "it sees 198.18.1.2 port" in said
        return
    client = lab.prepare(blocks=[block(40)], routers=routers)
    assert client.ask("ramp", "ramped")["held"] == 40
    assert until(lambda: server.ask("status", "status")["held"] == 40)


def test_addresses_may_be_written_in_any_way(lab):
    long = SERVER6.replace("::", ":0:0:0:0000:")
    server = lab.serve(endpoints=[[SERVER6, PORT]], control=[SERVER6, CONTROL])
    blocks = [block(30, source=CLIENT6.upper(), target=long)]
    client = lab.prepare(blocks=blocks, controls=[[long, CONTROL]])
    assert client.ask("ramp", "ramped")["held"] == 30
    assert until(lambda: server.ask("status", "status")["held"] == 30)


def test_a_front_may_lead_to_any_of_the_servers_ports(lab, program):
    front, door = [SERVER, PORT + 7], [SERVER, CONTROL + 7]
    program("server", RELAY, *front, SERVER, PORT)
    program("server", RELAY, *door, SERVER, CONTROL)
    server = lab.serve(fronts=[front])
    blocks = [block(40, target_port=PORT + 7)]
    client = lab.prepare(blocks=blocks, controls=[door], fronts=[front, door])
    assert client.ask("ramp", "ramped")["held"] == 40
    assert until(lambda: server.ask("status", "status")["held"] == 40)


def test_a_front_of_which_the_client_was_not_told_is_refused(lab, program):
    front = [SERVER, PORT + 7]
    program("server", RELAY, *front, SERVER, PORT)
    lab.serve(fronts=[front])
    said = refused(lab, blocks=[block(40, target_port=PORT + 7)])
    assert said == f"{SERVER} port {PORT + 7} leads to {SERVER} port {PORT} (from {CLIENT})"


def test_a_front_that_leads_to_no_data_port_is_refused(lab, program):
    front = [SERVER, PORT + 7]
    program("server", RELAY, *front, SERVER, CONTROL)
    lab.serve(fronts=[front])
    said = refused(lab, blocks=[block(40, target_port=PORT + 7)], fronts=[front])
    assert said == f"{SERVER} port {PORT + 7} leads to {SERVER} port {CONTROL} (from {CLIENT})"


@pytest.mark.parametrize("code", [STRANGER, CLOSER], ids=["mute", "closes"])
def test_a_stranger_gets_one_connection_from_all_sources_together(lab, program, nft, code):
    sources = [f"198.18.3.{number}" for number in range(1, 101)]
    for one in sources:
        lab.net.run("client", "ip", "addr", "add", f"{one}/15", "dev", "data0")
    stranger = program("server", code, SERVER, PORT + 7, 8)
    lab.serve()
    nft("client", NAT_OUT, f"tcp dport {PORT} dnat to :{PORT + 7}")
    said = refused(lab, blocks=[block(10, source=one) for one in sources])
    assert said.startswith(f"{SERVER} port {PORT} is not a server agent of this run")
    assert stranger.communicate()[0] == "1\n"


def test_one_pair_of_thousands_that_leads_elsewhere_is_refused(lab, nft):
    sources = [f"198.18.3.{number}" for number in range(1, 66)]
    for one in sources:
        lab.net.run("client", "ip", "addr", "add", f"{one}/15", "dev", "data0")
    ports = range(PORT, PORT + 64)
    lab.serve(endpoints=[[SERVER, port] for port in ports], connections=8000)
    nft("client", NAT_OUT, f"ip saddr {sources[7]} tcp dport {ports[9]} dnat to :{PORT + 300}")
    blocks = [block(2, source=one, target_port=port) for one in sources for port in ports]
    said = refused(lab, blocks=blocks)
    assert said == (
        f"{SERVER} port {ports[9]} is not a server agent of this run: Connection refused "
        f"(from {sources[7]})"
    )


def test_an_address_of_ours_that_a_stranger_has_as_well_is_refused(lab):
    """The stranger's answers go to nobody: what is sent from the address gets no answer."""
    lab.serve()
    lab.net.run("server", "ip", "route", "add", "blackhole", "198.18.1.2/32")
    began = time.monotonic()
    blocks = [block(50), block(51, source="198.18.1.2")]
    said = refused(lab, blocks=blocks)
    assert said == (
        f"{SERVER} port {PORT} is not a server agent of this run: no answer within 5 s "
        "(from 198.18.1.2)"
    )
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("listener", ["shared", "reuseport"])
def test_targets_of_both_ip_versions_prove_themselves_and_then_serve(lab, listener):
    server = lab.serve(
        endpoints=[[SERVER, PORT], [SERVER, PORT + 1], [SERVER6, PORT]], listener=listener
    )
    blocks = [
        block(101),
        block(57, target_port=PORT + 1, first_port=20_000),
        block(33, source=CLIENT6, target=SERVER6),
    ]
    first = lab.prepare(blocks=blocks, opens=False)
    second = lab.prepare(blocks=[block(29, source="198.18.1.2")])
    assert server.ask("status", "status")["held"] == 0
    held = sum(client.ask("ramp", "ramped")["held"] for client in (first, second))
    assert held == 101 + 57 + 33 + 29
    assert until(lambda: server.ask("status", "status")["held"] == held)
    assert until(lambda: server.ticks[-1]["opened"] == held)  # proofs are no connections
    assert lab.count("client", "time-wait") == 0
    assert lab.count("server", "time-wait", CONTROL) == 0


def test_a_closed_door_keeps_connections_out(lab):
    server = lab.serve()
    words = [*lab.net.enter("client"), sys.executable, "-c"]
    code = f"import socket; s = socket.create_connection(('{SERVER}', {PORT})); print(s.recv(9))"
    done = subprocess.run([*words, code], capture_output=True, text=True, timeout=20, check=False)
    assert "ConnectionResetError" in done.stderr or done.stdout == "b''\n"
    assert server.ask("status", "status")["held"] == 0


def test_open_is_for_servers_alone(lab):
    lab.serve()
    client = lab.prepare()
    client.send("open")
    error = client.hear("error")
    assert (error["kind"], error["message"]) == ("input", "open: this agent is a client")


# Strangers on the control port.

DRIP = """
import socket, sys, time
held = []
for _ in range(int(sys.argv[3])):
    held.append(socket.create_connection((sys.argv[1], int(sys.argv[2]))))
print("listening", flush=True)
while True:
    time.sleep(0.2)
    for one in held:
        try:
            if sys.argv[4] == "drip":
                one.send(b"x")
        except OSError:
            pass
"""


@pytest.mark.parametrize("how", ["drip", "silent"])
def test_peers_that_drip_or_say_nothing_keep_nobody_out(lab, program, how):
    lab.serve()
    for port in (CONTROL, PORT):
        program("client", DRIP, SERVER, port, 600, how)
    began = time.monotonic()
    client = lab.prepare(blocks=[block(100)])
    assert time.monotonic() - began < 5
    assert client.ask("ramp", "ramped")["held"] == 100


def test_a_peer_that_says_nothing_is_let_go_in_time(lab, program):
    lab.serve()
    program("client", DRIP, SERVER, CONTROL, 3, "silent")
    assert lab.count("server", "established", CONTROL) == 3
    assert until(lambda: lab.count("server", "established", CONTROL) == 0, 10)


LATE = """
import socket, sys, threading, time
DELAY = float(sys.argv[5]) / 2
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=1024)
print("listening", flush=True)
def pump(a, b):
    try:
        while data := a.recv(4096):
            time.sleep(DELAY)
            b.sendall(data)
        time.sleep(DELAY)
        b.shutdown(socket.SHUT_WR)
    except OSError:
        pass
def serve(one):
    time.sleep(DELAY * 2)
    two = socket.create_connection((sys.argv[3], int(sys.argv[4])))
    threading.Thread(target=pump, args=(one, two), daemon=True).start()
    pump(two, one)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def test_many_clients_far_away_pass_the_door_together(lab, program):
    """64 handshakes by way of a relay that takes 300 ms for a round trip."""
    lab.serve()
    program("server", LATE, SERVER, CONTROL + 7, SERVER, CONTROL, 0.3)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from bench.agent import control\n"
        "relay = sys.argv[2], int(sys.argv[3])\n"
        "words = [('198.18.1.1', relay)], sys.argv[4], control.way([relay], [])\n"
        "import concurrent.futures as f, time\n"
        "began = time.monotonic()\n"
        "with f.ThreadPoolExecutor(64) as pool:\n"
        "    asked = [pool.submit(control.introductions, *words) for _ in range(64)]\n"
        "    print(sum(len(one.result()) for one in asked), time.monotonic() - began)\n"
    )
    words = [*lab.net.enter("client"), sys.executable, "-c", code, os.getcwd(), SERVER]
    done = subprocess.run(
        [*words, str(CONTROL + 7), lab.nonce], capture_output=True, text=True, check=True
    )
    passed, seconds = done.stdout.split()
    assert passed == "64"
    assert float(seconds) < 5


@pytest.mark.parametrize(
    ("ports", "clients", "backlog"), [(4, 8, 4096), (1, 16, 4096), (1, 24, 128)]
)
def test_hundreds_of_honest_handshakes_at_a_time_all_pass(ports, clients, backlog):
    """More than a doorkeeper has under way: the others wait in the queues, none is dropped."""
    with contextlib.ExitStack() as stack:
        listeners = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=backlog))
            for _ in range(ports + 1)
        ]
        ends = [listener.getsockname() for listener in listeners]
        door = control.Doorkeeper(listeners[0], NONCE, ends[1:], doors=listeners[1:])
        door.start()
        stack.callback(door.close)
        sources = [f"127.0.1.{number}" for number in range(1, 65)]
        pairs = [(source, end) for end in ends[1:] for source in sources]
        with futures.ThreadPoolExecutor(clients) as pool:
            asked = [pool.submit(control.introductions, pairs, NONCE) for _ in range(clients)]
            for one in asked:
                found = one.result()
                assert all(found[pair].here == pair[1] for pair in pairs)
        assert door.is_alive()


def test_a_doorkeeper_that_is_full_waits_and_takes_no_more(monkeypatch):
    monkeypatch.setattr(control, "MOST_PEERS", 3)
    turns, most = [], []
    usual = handshake.Talks.turn

    def turn(talks, seconds):
        turns.append(seconds)
        done = usual(talks, seconds)
        most.append(len(talks))
        return done

    monkeypatch.setattr(handshake.Talks, "turn", turn)
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        for listener in 6 * both:
            stack.enter_context(socket.create_connection(listener.getsockname()))
        door = control.Doorkeeper(both[0], NONCE, [], doors=both[1:])
        door.start()
        stack.callback(door.close)
        time.sleep(1.2)
        turned = len(turns)
    assert max(most) == 3
    assert turned < 30  # each takes half a second, or ends with one who makes room


# Forgers: servers and clients that know the protocol, and not the nonce, or lie with it.


def proof(nonce, role, data):
    return hmac.new(bytes.fromhex(nonce), role.encode() + data, hashlib.sha256).digest()


def forger(lie):
    """A server on loopback that lies in one way; returns its listener."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                with listener.accept()[0] as peer, contextlib.suppress(OSError):
                    lie(peer)

    threading.Thread(target=serve, daemon=True).start()
    return listener


NONCE = "5a" * 16


def honest(peer, *, key=NONCE, role="server", text=None, tagged=None, size=None):
    challenge = peer.recv(wire.CHALLENGE_BYTES)
    mine = os.urandom(wire.CHALLENGE_BYTES)
    peer.sendall(proof(key, role, challenge) + mine)
    if not peer.recv(wire.PROOF_BYTES):
        return
    here = peer.getsockname()
    described = {"here": here, "peer": peer.getpeername(), "endpoints": [here], "fronts": []}
    data = json.dumps(described).encode() if text is None else text
    tag = proof(key, "endpoints", (tagged if tagged is not None else data) + challenge)
    peer.sendall(struct.pack(">I", len(data) if size is None else size) + data + tag)
    peer.recv(1)


def reflected(peer):
    """Sends back the client's own challenge as its own, and waits for the proof of it."""
    challenge = peer.recv(wire.CHALLENGE_BYTES)
    peer.sendall(os.urandom(wire.PROOF_BYTES) + challenge)
    peer.recv(64)


LIES = {
    "wrong proof": lambda peer: honest(peer, key="00" * 16),
    "wrong role": lambda peer: honest(peer, role="client"),
    "reflected": reflected,
    "changed endpoints": lambda peer: honest(peer, tagged=b"{}"),
    "oversized": lambda peer: honest(peer, size=1 << 31),
    "no json": lambda peer: honest(peer, text=b"\xff{"),
    "not an object": lambda peer: honest(peer, text=b"[]"),
    "deep": lambda peer: honest(peer, text=b"[" * 100_000),
    "no ports": lambda peer: honest(
        peer, text=b'{"here": ["::1", "x"], "peer": ["::1", 1], "endpoints": [], "fronts": []}'
    ),
    "closed": lambda peer: None,
}


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_is_refused(lie):
    with forger(LIES[lie]) as listener:
        where = listener.getsockname()
        with pytest.raises(control.Refused, match="is not a server agent of this run"):
            control.introduce(where, NONCE, "127.0.0.1")
        listener.shutdown(socket.SHUT_RDWR)


def test_an_honest_server_passes():
    with forger(honest) as listener:
        where = listener.getsockname()
        assert control.introduce(where, NONCE, "127.0.0.1") == {where}
        listener.shutdown(socket.SHUT_RDWR)


def among(manners):
    """A server on loopback that has manners of its own for each connection, and then is honest."""
    taken = []

    def lie(peer):
        taken.append(peer)
        dict(enumerate(manners)).get(len(taken) - 1, honest)(peer)

    return forger(lie), taken


def closes(peer):
    """Closes before it has said anything."""


def asked_of(listener, sources):
    pairs = [(f"127.0.1.{number}", listener.getsockname()) for number in range(sources)]
    return control.introductions(pairs, NONCE)


def test_a_queue_that_is_full_now_and_then_ends_nothing():
    listener, taken = among([honest, closes, honest, closes])
    with listener:
        assert len(asked_of(listener, 5)) == 5
        assert len(taken) == 7
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("manners", "sources", "least", "most"),
    [
        ([closes] * 20, 9, 1, 1),
        ([honest, *[closes] * 20], 2, 1 + control.TRIES, 1 + control.TRIES),
        ([honest, *[closes] * 200], 60, 1 + control.TRIES, 1 + 2 * control.TRIES),
    ],
)
def test_who_always_closes_is_not_tried_for_long(manners, sources, least, most):
    listener, taken = among(manners)
    with listener:
        with pytest.raises(control.Refused, match=r"this run: .*(closed|reset)"):
            asked_of(listener, sources)
        assert least <= len(taken) <= most
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("passed", [1, 3])
def test_a_stranger_gets_no_more_than_the_server_and_one(passed):
    """Where some sources are led to the server, and the others to somebody else."""
    kept, taken = [], []

    def mute(peer):
        kept.append(peer.dup())

    def lie(peer):
        taken.append(peer)
        (honest if len(taken) <= passed else mute)(peer)

    with forger(lie) as listener:
        with pytest.raises(control.Refused, match="no answer"):
            asked_of(listener, 60)
        assert 1 <= len(taken) - passed <= passed + 1
        listener.shutdown(socket.SHUT_RDWR)
    for one in kept:
        one.close()


@pytest.mark.parametrize("lie", ["wrong proof", "wrong role", "reflected"])
def test_a_client_that_lies_learns_nothing(lie):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        door = control.Doorkeeper(listener, NONCE, [("127.0.0.1", 5000)])
        door.start()
        try:
            with socket.create_connection(listener.getsockname()) as peer:
                peer.settimeout(5)
                mine = os.urandom(wire.CHALLENGE_BYTES)
                peer.sendall(mine)
                answer = peer.recv(wire.PROOF_BYTES + wire.CHALLENGE_BYTES, socket.MSG_WAITALL)
                theirs = answer[wire.PROOF_BYTES :]
                assert answer[: wire.PROOF_BYTES] == proof(NONCE, "server", mine)
                lies = {
                    "wrong proof": proof("00" * 16, "client", theirs),
                    "wrong role": proof(NONCE, "server", theirs),
                    "reflected": answer[: wire.PROOF_BYTES],
                }
                peer.sendall(lies[lie])
                with contextlib.suppress(ConnectionResetError):
                    assert peer.recv(1) == b""
        finally:
            door.close()
        assert not door.is_alive()
