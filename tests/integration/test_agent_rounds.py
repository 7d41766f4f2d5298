"""Rounds of one byte each way over held connections, and what goes wrong in them."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from agents import CLIENT6, PORT, SERVER, SERVER6, block, until

MIRROR = """
import selectors, socket
listener = socket.socket()
for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
    listener.setsockopt(socket.SOL_SOCKET, option, 1)
listener.bind(("{address}", {port}))
listener.listen(4096)
print("listening", flush=True)
watch = selectors.DefaultSelector()
watch.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in watch.select():
        if key.fileobj is listener:
            watch.register(listener.accept()[0], selectors.EVENT_READ)
        else:
            key.fileobj.sendall(key.fileobj.recv(16))
"""


def ramp(server, client, wanted=2000):
    ramped = client.ask("ramp", "ramped")
    assert (ramped["held"], ramped["lost"]) == (wanted, 0)
    assert until(lambda: server.ask("status", "status")["held"] == wanted)
    server.ask("answer", "answering", on=True, how="byte")


def counts(rounded):
    return tuple(rounded[name] for name in ("asked", "answered", "wrong", "silent"))


@pytest.mark.parametrize("listener", ["shared", "reuseport"])
def test_rounds_over_many_workers(lab, listener):
    server = lab.serve(nofile=300, listener=listener)
    client = lab.prepare(nofile=300, active=2)
    ramp(server, client)
    spent = server.ask("status", "status")["cpu_seconds"]
    for number, fields, asked in (
        (1, {"mode": "pipelined"}, 2000),
        (2, {"mode": "pipelined", "window": 1}, 2000),
        (3, {"mode": "sequential", "sample": 100}, 100),
        (4, {"mode": "pipelined", "window": 5000}, 2000),
    ):
        rounded = client.ask("round", "rounded", number=number, **fields)
        assert counts(rounded) == (asked, asked, 0, 0)
        assert sum(rounded["latency"].values()) == asked
        assert rounded["seconds"] > 0 and rounded["cpu_seconds"] > 0
    assert server.ask("status", "status")["cpu_seconds"] > spent
    answering = server.ask("answer", "answering", on=False)
    assert (answering["echoes"], answering["wrong"]) == (6100, 0)
    # Echoes with tags go on working after it.
    server.ask("answer", "answering", on=True)
    assert client.ask("echo", "echoed", mode="all")["answered"] == 2000
    assert client.ask("verify", "verified")["alive"] == 2000


def test_rounds_over_several_endpoints_and_both_ip_versions(lab):
    server = lab.serve(endpoints=[[SERVER, PORT], [SERVER6, PORT + 2]])
    blocks = [
        block(300),
        block(200, source=CLIENT6, target=SERVER6, target_port=PORT + 2),
    ]
    client = lab.prepare(blocks=blocks)
    ramp(server, client, 500)
    rounded = client.ask("round", "rounded", number=1, mode="pipelined")
    assert counts(rounded) == (500, 500, 0, 0)


@pytest.fixture
def mirror(lab):
    """Starts a stranger on the server's port who sends every byte back as it came."""
    started = []

    def start():
        words = [*lab.net.enter("server"), sys.executable, "-c"]
        code = MIRROR.format(address=SERVER, port=PORT)
        started.append(subprocess.Popen([*words, code], stdout=subprocess.PIPE, text=True))
        assert started[0].stdout.readline() == "listening\n"

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("mode", ["pipelined", "sequential"])
def test_a_stranger_who_only_sends_back_what_came_is_found(lab, mirror, mode):
    server = lab.serve(listener="reuseport")
    client = lab.prepare(blocks=[block(300)])
    mirror()  # a stranger who comes later: the ports have been proven
    assert client.ask("ramp", "ramped")["held"] == 300
    server.ask("answer", "answering", on=True, how="byte")
    rounded = client.ask("round", "rounded", number=1, mode=mode)
    held = server.ask("status", "status")["held"]  # all: whom it has answered it has accepted
    assert 0 < held < 300
    assert counts(rounded) == (300, held, 300 - held, 0)
    assert sum(rounded["latency"].values()) == held


@contextlib.contextmanager
def stopped(server, workers):
    """Stop workers of a server, and before them their agent, which would kill them for it."""
    for pid in (server.process.pid, *workers):
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in (*workers, server.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_a_silent_server_is_found_and_the_time_is_bounded(lab):
    server, client = lab.serve(nofile=300), lab.prepare(nofile=300)
    ramp(server, client)
    with stopped(server, server.workers()[:3]):
        began = time.monotonic()
        rounded = client.ask("round", "rounded", number=1, mode="pipelined", patience_ms=400)
        sequential = client.ask("round", "rounded", number=2, mode="sequential", sample=200)
        assert time.monotonic() - began < 30
    asked, answered, wrong, silent = counts(rounded)
    assert (asked, answered, wrong) == (2000, 2000 - silent, 0)
    assert 0 < silent < 2000
    # Those are left out from now on: their answers are late, not wrong.
    asked, answered, wrong, others = counts(sequential)
    assert (answered, wrong, others) == (asked, 0, 0)
    rounded = client.ask("round", "rounded", number=3, mode="pipelined")
    assert counts(rounded) == (2000 - silent, 2000 - silent, 0, 0)


def test_nobody_answers_at_all(lab):
    server, client = lab.serve(nofile=300), lab.prepare(nofile=300)
    ramp(server, client)
    with stopped(server, server.workers()):
        began = time.monotonic()
        # One after the other ends after a few; 2,000 times the patience would be an hour.
        rounded = client.ask("round", "rounded", number=1, mode="sequential", patience_ms=100)
        assert counts(rounded) == (8, 0, 0, 8)
        rounded = client.ask("round", "rounded", number=2, mode="pipelined", patience_ms=2000)
        assert counts(rounded) == (1992, 0, 0, 1992)
        assert time.monotonic() - began < 50


def test_a_client_worker_killed_in_a_round_is_reported_and_the_round_ends(lab):
    server, client = lab.serve(nofile=300), lab.prepare(nofile=300)
    ramp(server, client)
    victim = client.workers()[2]
    os.kill(victim, signal.SIGSTOP)  # so that it cannot be done before it is killed
    client.send("round", number=1, mode="pipelined")
    os.kill(victim, signal.SIGKILL)
    fault = client.hear("error")
    assert fault["kind"] == "fault"
    how = fault["message"].partition(f"(pid {victim}) ")[2]
    assert how in ("died: signal 9", "was stopped: signal 19")  # whichever was seen first
    asked, answered, wrong, silent = counts(client.hear("rounded"))
    assert asked < 2000
    assert (answered, wrong, silent) == (asked, 0, 0)


def test_a_server_worker_killed_in_a_round_is_reported_on_both_ends(lab):
    server, client = lab.serve(nofile=300), lab.prepare(nofile=300)
    ramp(server, client)
    victim = server.workers()[0]
    with stopped(server, [victim]):
        client.send("round", number=1, mode="pipelined", patience_ms=50_000)
        assert until(lambda: len(client.ticks) > 2)
        os.kill(victim, signal.SIGKILL)
    assert server.hear("error")["kind"] == "fault"
    asked, answered, wrong, silent = counts(client.hear("rounded"))
    assert (asked, answered, wrong) == (2000, 2000 - silent, 0)
    assert server.ask("status", "status")["held"] == 2000 - silent


def test_the_end_of_input_ends_a_round(lab):
    server, client = lab.serve(nofile=300), lab.prepare(nofile=300)
    ramp(server, client)
    with stopped(server, server.workers()[:1]):
        client.send("round", number=1, mode="pipelined", patience_ms=100_000)
        assert until(lambda: len(client.ticks) > 2)
        client.process.stdin.close()
        assert client.process.wait(timeout=10) == 0
        assert lab.sockets("client") == 0
