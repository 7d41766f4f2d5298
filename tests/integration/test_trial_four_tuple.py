"""A second connection beside a first one, with none and with each of its four values changed."""

from __future__ import annotations

import secrets

import pytest
from agents import CLIENT, CLIENT6, CONTROL, SERVER, SERVER6
from beds import Bed

from bench.errors import LabError
from bench.hosts.trials import Trials

SECOND = {SERVER: "198.18.0.2", CLIENT: "198.18.1.2"}
NONCE = secrets.token_hex(16)


@pytest.fixture
def trials(bed: Bed):
    with Trials(bed.connect) as made:
        yield made


def serve(trials: Trials, bed: Bed, addresses: list[str], nonce: str = NONCE):
    return trials.begin(
        bed.inventory().hosts["server"],
        "four_tuple",
        role="server",
        endpoints=[[address, port] for address in addresses for port in (5000, 5001)],
        control=[addresses[0], CONTROL],
        nonce=nonce,
    )


def connect(trials: Trials, bed: Bed, sources: list[str], addresses: list[str]):
    return trials.begin(
        bed.inventory().hosts["client"],
        "four_tuple",
        role="client",
        sources=sources,
        targets={"address": addresses, "port": [5000, 5001]},
        source=sources[0],
        control=[addresses[0], CONTROL],
        nonce=NONCE,
    ).first["cases"]


def test_each_of_the_four_values_admits_a_second_connection(trials: Trials, bed: Bed) -> None:
    servers = [SERVER, SECOND[SERVER]]
    server = serve(trials, bed, servers)
    assert connect(trials, bed, [CLIENT, SECOND[CLIENT]], servers) == {
        "first": "admitted",
        "same, without SO_REUSEADDR": "bind: EADDRINUSE",
        "same": "connect: EADDRNOTAVAIL",
        "client port": "admitted",
        "server port": "admitted",
        "client address": "admitted",
        "server address": "admitted",
    }
    assert server.go()["accepted"] == 5
    for host in ("server", "client"):
        assert not bed.net.run(host, "ss", "-Htan").strip()


def test_what_there_is_no_second_one_of_is_not_tried(trials: Trials, bed: Bed) -> None:
    serve(trials, bed, [SERVER6])
    cases = connect(trials, bed, [CLIENT6], [SERVER6])
    assert cases["client address"] is None and cases["server address"] is None
    assert cases["client port"] == cases["server port"] == "admitted"
    assert cases["same"] == "connect: EADDRNOTAVAIL"


def test_a_stranger_is_not_connected_to(trials: Trials, bed: Bed) -> None:
    serve(trials, bed, [SERVER], nonce=secrets.token_hex(16))
    with pytest.raises(LabError, match="not a server agent of this run"):
        connect(trials, bed, [CLIENT], [SERVER])
