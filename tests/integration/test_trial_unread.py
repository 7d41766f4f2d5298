"""Unread bytes are charged to the socket that holds them, idle sockets hold none."""

from __future__ import annotations

import secrets

import pytest
from agents import CLIENT, SERVER, until
from beds import Bed

from bench.errors import LabError
from bench.hosts.trials import Trial, Trials

ENDS = {"target": [SERVER, 5000], "control": [SERVER, 5999]}


@pytest.fixture
def trials(bed: Bed):
    for name in ("server", "client"):
        bed.net.run(name, "sysctl", "-w", "net.ipv4.tcp_rmem=4096 131072 2097152")
        bed.net.run(name, "sysctl", "-w", "net.ipv4.tcp_wmem=4096 16384 1048576")
    with Trials(bed.connect) as made:
        yield made


def begun(trials: Trials, bed: Bed) -> tuple[Trial, Trial]:
    hosts, nonce = bed.inventory().hosts, secrets.token_hex(16)
    server = trials.begin(hosts["server"], "unread", side="server", nonce=nonce, **ENDS)
    client = trials.begin(
        hosts["client"], "unread", side="client", nonce=nonce, source=CLIENT, **ENDS
    )
    return server, client


def test_an_idle_socket_holds_no_buffer_and_unread_bytes_are_held(trials: Trials, bed: Bed) -> None:
    server, client = begun(trials, bed)
    assert server.first["rmem"] == [4096, 131_072, 2_097_152]
    trials.together({server: {"accept": 50}, client: {"connect": 50}})
    idle = server.go()
    assert (idle["connections"], idle["unread"], idle["charged"]) == (50, 0, 0)
    assert client.go(send=10_000) == {"event": "told", "sent": 500_000}
    full = server.go(expect=500_000)
    assert (full["unread"], full["least"]) == (500_000, 10_000)
    assert full["charged"] >= full["buffered"] >= 500_000


def test_a_sender_that_never_stops_is_stopped_by_the_buffers(trials: Trials, bed: Bed) -> None:
    server, client = begun(trials, bed)
    trials.together({server: {"accept": 1}, client: {"connect": 1}})
    first = client.go(flood=64 << 20)
    never = server.go()["last"]
    assert 0 < never["unread"] < first["sent"] < 64 << 20
    assert first["sent"] == never["unread"] + first["queued"]
    trials.together({server: {"read": 64 << 20}, client: {"flood": 64 << 20}})
    client.go(flood=64 << 20)
    grown = server.go()["last"]
    assert never["rcvbuf"] < grown["rcvbuf"] <= 2_097_152
    assert grown["unread"] > never["unread"]
    for trial in (client, server):
        trial.end()
    assert until(bed.clean)


def test_a_sender_beyond_the_descriptors_of_select_is_led_as_well(trials: Trials, bed: Bed) -> None:
    server, client = begun(trials, bed)
    trials.together({server: {"accept": 1_100}, client: {"connect": 1_100}})
    assert client.go(flood=10_000)["sent"] == 10_000
    assert server.go(expect=10_000)["last"]["unread"] == 10_000


def test_bad_arguments_are_named(trials: Trials, bed: Bed) -> None:
    host = bed.inventory().hosts["server"]
    with pytest.raises(LabError, match="unread: side: got 'both', expected server or client"):
        trials.begin(host, "unread", side="both")
    with pytest.raises(LabError, match="is not a server agent of this run"):
        trials.begin(host, "unread", side="client", nonce="no", source=SERVER, **ENDS)
    server, client = begun(trials, bed)
    trials.together({server: {"accept": 1}, client: {"connect": 1}})
    with pytest.raises(LabError, match="unread: bytes: got 0, expected 1 to"):
        client.go(flood=0)
