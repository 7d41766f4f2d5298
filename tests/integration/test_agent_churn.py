"""Churn: held connections are closed and opened again while all others are held."""

import os
import signal
import time

import pytest
from agents import CLIENT6, PORT, SERVER, SERVER6, block, until

from bench.agent.workers import RESERVE

ODD = 997


def ramp(server, client, wanted=ODD):
    ramped = client.ask("ramp", "ramped")
    assert (ramped["held"], ramped["lost"]) == (wanted, 0)
    assert until(lambda: server.ask("status", "status")["held"] == wanted)


def tuples(lab):
    """The client's ends of its established connections."""
    rows = lab.net.run("client", "ss", "-Htn", "state", "established").splitlines()
    return sorted((row.split()[2], row.split()[3]) for row in rows)


def counts(churned):
    return churned["closed"], churned["opened"], churned["lost"]


def no_time_wait(lab):
    return not any(lab.count(host, "time-wait") for host in ("server", "client"))


@pytest.mark.parametrize("listener", ["shared", "reuseport"])
def test_the_same_four_tuples_are_held_after_it(lab, listener):
    server = lab.serve(listener=listener, workers=3)
    client = lab.prepare(blocks=[block(ODD)], workers=3)
    ramp(server, client)
    before, resets = tuples(lab), lab.counter("server", "TcpEstabResets")
    churned = client.ask("churn", "churned", rate=1000, seconds=1.5)
    assert counts(churned) == (1500, 1500, 0)  # each once at least
    assert sum(churned["latency"].values()) == 1500
    assert churned["errors"] == {}
    assert 1.5 <= churned["seconds"] < 5
    assert tuples(lab) == before
    status = client.ask("status", "status")
    assert status["held"] == ODD
    assert until(lambda: server.ask("status", "status")["held"] == ODD)
    assert until(lambda: server.ticks[-1]["closed"] == 1500)
    assert server.ticks[-1]["opened"] == client.ticks[-1]["opened"] == ODD + 1500
    assert no_time_wait(lab)
    assert lab.counter("server", "TcpEstabResets") - resets == 1500


def test_connections_keep_their_numbers(lab):
    """The bytes of a round are those of the places: a server that counts along would know."""
    server = lab.serve(workers=3)
    client = lab.prepare(blocks=[block(ODD)], workers=3)
    ramp(server, client)
    server.ask("answer", "answering", on=True, how="byte")
    for number in (1, 2, 3):
        assert counts(client.ask("churn", "churned", rate=700, seconds=0.5)) == (350, 350, 0)
        rounded = client.ask("round", "rounded", number=number, mode="pipelined")
        assert (rounded["asked"], rounded["answered"]) == (ODD, ODD)
    answering = server.ask("answer", "answering", on=False)
    assert (answering["echoes"], answering["wrong"]) == (3 * ODD, 0)
    server.ask("answer", "answering", on=True)
    assert client.ask("echo", "echoed", mode="all")["answered"] == ODD
    assert client.ask("verify", "verified") == {"event": "verified", "alive": ODD, "dead": 0}


def test_over_several_targets_and_both_ip_versions(lab):
    server = lab.serve(endpoints=[[SERVER, PORT], [SERVER, PORT + 1], [SERVER6, PORT]])
    blocks = [
        block(101),
        block(101, target_port=PORT + 1),
        block(103, source=CLIENT6, target=SERVER6),
    ]
    client = lab.prepare(blocks=blocks)
    ramp(server, client, 305)
    before = tuples(lab)
    assert counts(client.ask("churn", "churned", rate=610, seconds=1)) == (610, 610, 0)
    assert tuples(lab) == before
    assert no_time_wait(lab)


def test_a_server_whose_workers_are_full_to_the_last_descriptor(lab):
    """Whoever has room again accepts, though all have laid their batons down."""
    room = 300 - RESERVE - 1
    server = lab.serve(nofile=300, connections=3 * room)
    assert len(server.workers()) == 3
    client = lab.prepare(blocks=[block(3 * room)])
    ramp(server, client, 3 * room)
    assert counts(client.ask("churn", "churned", rate=300, seconds=2)) == (600, 600, 0)
    assert until(lambda: server.ask("status", "status")["held"] == 3 * room)
    assert client.ask("verify", "verified")["alive"] == 3 * room


def test_what_the_server_has_closed_stays_lost(lab):
    server = lab.serve(workers=3)
    client = lab.prepare(blocks=[block(ODD)], workers=3)
    ramp(server, client)
    os.kill(server.workers()[0], signal.SIGKILL)
    server.hear("error")
    left = server.ask("status", "status")["held"]
    assert until(lambda: lab.count("client", "established") == left)
    churned = client.ask("churn", "churned", rate=2 * ODD, seconds=1)
    assert churned["lost"] == 0 and churned["closed"] == churned["opened"] <= 2 * left
    verified = client.ask("verify", "verified")
    assert (verified["alive"], verified["dead"]) == (left, ODD - left)


def test_a_server_that_has_gone_is_counted_by_errno(lab):
    server = lab.serve()
    client = lab.prepare(blocks=[block(101)], retries=1, backoff_ms=10)
    ramp(server, client, 101)
    lab.net.run("client", "ip", "route", "add", "prohibit", f"{SERVER}/32")
    churned = client.ask("churn", "churned", rate=50, seconds=1)
    assert counts(churned) == (50, 0, 50)
    assert sum(churned["errors"].values()) == 100  # each tried twice
    assert client.ask("status", "status")["held"] == 51
    lab.net.run("client", "ip", "route", "del", "prohibit", f"{SERVER}/32")
    assert client.ask("verify", "verified")["alive"] == 51
    assert counts(client.ask("churn", "churned", rate=51, seconds=1)) == (51, 51, 0)


def test_halt_ends_it_early_and_the_counts_agree(lab):
    server = lab.serve(workers=3)
    client = lab.prepare(blocks=[block(ODD)], workers=3)
    ramp(server, client)
    client.send("churn", rate=500, seconds=600)
    assert until(lambda: client.ticks and client.ticks[-1]["closed"] > 200)
    began = time.monotonic()
    client.ask("halt", "halted")
    churned = client.hear("churned")
    assert time.monotonic() - began < 2
    closed, opened, lost = counts(churned)
    assert closed == opened + lost and closed < 5000
    held = ODD - lost
    assert client.ask("status", "status")["held"] == held
    assert until(lambda: server.ask("status", "status")["held"] == held)
    assert lab.count("client", "established") == held
    assert counts(client.ask("churn", "churned", rate=100, seconds=0.5)) == (50, 50, 0)


@pytest.mark.parametrize("end", ["stop", "input", "SIGTERM"])
def test_an_agent_that_ends_in_the_midst_closes_all(lab, end):
    server = lab.serve(workers=3)
    client = lab.prepare(blocks=[block(ODD)], workers=3)
    ramp(server, client)
    client.send("churn", rate=800, seconds=600)
    assert until(lambda: client.ticks and client.ticks[-1]["closed"] > 100)
    if end == "stop":
        client.ask("stop", "stopped")
    elif end == "input":
        client.process.stdin.close()
    else:
        client.process.send_signal(signal.SIGTERM)
    client.process.wait(5)
    assert lab.sockets("client") == 0
    assert until(lambda: server.ask("status", "status")["held"] == 0)
    assert no_time_wait(lab)


def test_memory_is_told_without_a_collection(lab):
    server = lab.serve(workers=3)
    client = lab.prepare(blocks=[block(11)], workers=3)
    ramp(server, client, 11)
    for agent in (server, client):
        own = agent.ask("memory", "memory")["own_kib"]
        assert 4_000 < own < agent.ask("collect", "collected", phase="peak")["pss_kib"] < 200_000


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "rate: None"),
        ({"rate": 0, "seconds": 1}, "rate: 0 is not a number above 0"),
        ({"rate": True, "seconds": 1}, "rate: True"),
        ({"rate": 1, "seconds": -1}, "seconds: -1"),
        ({"rate": 1, "seconds": "1"}, "seconds: '1'"),
        ({"rate": 2e6, "seconds": 1}, r"rate: 2000000.0 is not a number above 0, up to 1e\+06"),
    ],
)
def test_an_order_that_makes_no_sense(lab, fields, named):
    lab.serve()
    client = lab.prepare(blocks=[block(10)])
    error = client.ask("churn", "error", **fields)
    assert error["kind"] == "input"
    assert error["message"].startswith(named.replace("\\", ""))


def test_a_server_does_not_churn(lab):
    server = lab.serve()
    assert server.ask("churn", "error", rate=1, seconds=1)["message"] == (
        "churn: this agent is a server"
    )
