"""Bursts against a server that accepts slowly."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from agents import CLIENT, CONTROL, PORT, SERVER, until
from beds import Bed
from sides import lab

from bench.claims.ends import Look, between, gained
from bench.errors import LabError
from bench.hosts.trials import Trial, Trials

HERE = {"source": CLIENT, "target": [SERVER, PORT]}


@pytest.fixture
def trials(bed: Bed):
    with Trials(bed.connect) as made:
        yield made


def both(trials: Trials, bed: Bed, nap_ms: float) -> tuple[Trial, Trial]:
    known = {"nonce": secrets.token_hex(16), "control": [SERVER, CONTROL]}
    hosts = bed.inventory().hosts
    served = {"endpoint": [SERVER, PORT], "nap_ms": nap_ms}
    server = trials.begin(hosts["server"], "slowserver", **known, **served)
    return server, trials.begin(hosts["client"], "burst", **known, **HERE)


def test_a_short_queue_drops_what_a_long_one_keeps(trials: Trials, bed: Bed) -> None:
    server, client = both(trials, bed, nap_ms=1000)
    look = Look(trials, bed.inventory().hosts["server"])
    assert server.go(backlog=4)["granted"] == 4
    before = look.counters()
    # Below the second after which a SYN is sent again (TCP_TIMEOUT_INIT, include/net/tcp.h).
    told = client.go(connects=64, timeout_ms=500)
    assert told["connected"] + told["errors"]["ETIMEDOUT"] == 64
    assert len(told["milliseconds"]) == 3
    after = look.counters()
    assert gained(before, after, "TcpExtListenDrops") > 0
    assert gained(before, after, "TcpExtListenOverflows") > 0
    [held] = look.count([(SERVER, PORT)], "src", "established")
    assert 5 <= held <= 5 + server.go()["accepted"]  # backlog + 1 fit (sk_acceptq_is_full)
    assert client.go(wait_ms=1)["served"] <= server.go()["accepted"] < 8

    assert server.go(backlog=65_535)["granted"] == 65_535
    before = look.counters()
    told = client.go(connects=64, timeout_ms=5000)
    assert (told["connected"], told["errors"]) == (64, {})
    assert gained(before, look.counters(), "TcpExtListenDrops") == 0


def test_all_that_connect_are_served(trials: Trials, bed: Bed) -> None:
    server, client = both(trials, bed, nap_ms=1)
    server.go(backlog=1000)
    assert client.go(connects=50, timeout_ms=5000)["connected"] == 50
    told = client.go(wait_ms=5000)
    assert told["served"] == 50 == server.go()["accepted"]
    assert told["milliseconds"] == sorted(told["milliseconds"])
    server.end()
    client.end()
    assert until(bed.clean)


def test_a_server_that_does_not_prove_itself_is_left_alone(trials: Trials, bed: Bed) -> None:
    host = bed.inventory().hosts["client"]
    with pytest.raises(LabError, match="is not a server agent of this run"):
        trials.begin(host, "burst", nonce="ab" * 16, control=[SERVER, CONTROL], **HERE)


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ({"connects": 0, "timeout_ms": 5}, "connects: got 0, expected 1 to"),
        ({"connects": 5, "timeout_ms": 10**9}, "timeout_ms: got 1000000000, expected 1 to"),
        ({"wait_ms": "x"}, "wait_ms: got 'x', expected 1 to"),
    ],
)
def test_bursts_are_bounded(trials: Trials, bed: Bed, step, line: str) -> None:
    server, client = both(trials, bed, nap_ms=1)
    server.go(backlog=16)
    with pytest.raises(LabError, match=line):
        client.go(**step)


def test_what_a_look_cannot_do_is_refused(trials: Trials, bed: Bed) -> None:
    look = Look(trials, bed.inventory().hosts["server"])
    with pytest.raises(LabError, match="texts: got 'passwd', expected one of"):
        look.text("passwd")
    with pytest.raises(LabError, match="state: got 'all', expected one of"):
        Look(trials, bed.inventory().hosts["server"]).count([(SERVER, PORT)], "src", "all")


def test_ends_are_the_first_hosts(bed: Bed, tmp_path: Path) -> None:
    found = between(lab(bed, tmp_path), ports=2)
    assert (found.source, found.address) == (CLIENT, SERVER)
    assert found.endpoints == [(SERVER, 6000), (SERVER, 6001)]
    assert found.server["control"] not in found.endpoints
