"""Connections closed between namespaces, and what they leave."""

from __future__ import annotations

from pathlib import Path

import pytest
from agents import CLIENT, CONTROL, PORT, SERVER
from beds import Bed
from sides import lab

from bench.claims.churning import Churning
from bench.claims.ends import between
from bench.claims.statements import time_wait
from bench.errors import LabError
from bench.hosts.trials import Trials

PORTS = 60
KNOWN = {"nonce": "ab" * 16, "control": [SERVER, CONTROL], "source": CLIENT}


@pytest.fixture
def trials(bed: Bed, tmp_path: Path):
    with lab(bed, tmp_path).trials() as made:
        yield made


def test_who_closes_first_runs_out_of_ports(trials: Trials, bed: Bed, tmp_path: Path) -> None:
    hosts = lab(bed, tmp_path)
    ends = between(hosts, ports=len(time_wait.MODES), first=time_wait.FIRST_PORT)
    modes = list(zip(ends.ports, time_wait.MODES, strict=True))
    server = {"side": "server", "address": ends.address, "ports": modes, **ends.server}
    trials.begin(hosts.server, "closing", **server)
    targets = ends.endpoints[2:]
    client = trials.begin(hosts.client, "closing", side="client", targets=targets, **ends.client)
    found = Churning(hosts, trials, ends, client, PORTS).measured()
    first = found["client_first"]
    assert (first.done, first.error) == (PORTS, "EADDRNOTAVAIL")
    assert (first.client_time_wait, first.server_time_wait) == (PORTS, 0)
    second, reset = found["server_first"], found["reset"]
    assert (second.done, second.error, second.client_time_wait) == (2 * PORTS, None, 0)
    assert 0 < second.server_time_wait <= PORTS
    assert (reset.done, reset.error) == (2 * PORTS, None)
    assert (reset.client_time_wait, reset.server_time_wait) == (0, 0)
    assert (found["reuse_first"].done, found["reuse_again"].done) == (PORTS, PORTS)
    assert found["bound_after"] is not None and found["reuse_after"] is not None
    assert found["loopback_only_after"] is None and found["loopback_after"] is not None
    assert 0 < found["object_bytes"] < found["socket_bytes"]


def test_an_orphan_ends_with_tcp_fin_timeout(trials: Trials, bed: Bed, tmp_path: Path) -> None:
    hosts = lab(bed, tmp_path)
    ends = between(hosts, ports=2, first=time_wait.FIRST_PORT)
    modes = list(zip(ends.ports, ("client", "mute"), strict=True))
    server = {"side": "server", "address": ends.address, "ports": modes, **ends.server}
    trials.begin(hosts.server, "closing", **server)
    with hosts.settings([hosts.client], sysctl={time_wait.FIN_TIMEOUT: 2}):
        client = trials.begin(hosts.client, "lasting", targets=ends.endpoints, **ends.client)
        client.go(target=ends.endpoints[0], state="TIME-WAIT")
        client.go(target=ends.endpoints[1], state="FIN-WAIT-2")
        kept, orphan = client.go(watch=8)["seconds"]
    assert kept is None  # for its minute, whatever is set
    assert orphan is not None and orphan >= 1.5


@pytest.mark.parametrize("name", ["closing", "lasting"])
def test_a_server_that_does_not_prove_itself_is_left_alone(
    name: str, trials: Trials, bed: Bed
) -> None:
    host = bed.inventory().hosts["client"]
    with pytest.raises(LabError, match="is not a server agent of this run"):
        trials.begin(host, name, targets=[[SERVER, PORT]], **KNOWN)


def test_an_unknown_mode_is_refused(trials: Trials, bed: Bed) -> None:
    host = bed.inventory().hosts["server"]
    args = {"side": "server", "address": SERVER, "ports": [[PORT, "shy"]], **KNOWN}
    with pytest.raises(LabError, match="port 5000: got 'shy', expected one of client, server"):
        trials.begin(host, "closing", **args)


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ({"do": "sing"}, "do: got 'sing', expected churn or reuse"),
        ({"do": "churn", "target": [SERVER, 9]}, "target: got 198.18.0.1 port 9, expected one"),
        ({"do": "churn", "target": [SERVER, PORT], "count": 0}, "count: got 0, expected 1 to"),
        (
            {"do": "churn", "target": [SERVER, PORT], "count": 1, "first": "client", "how": "x"},
            "first, how: got 'client', 'x', expected",
        ),
        ({"do": "reuse", "patience": 0}, "patience: got 0, expected above 0"),
        ({"do": "reuse", "patience": 1, "bound": 5}, "bound: got 5, expected 1024 to 65535"),
    ],
)
def test_what_makes_no_sense_is_refused(trials: Trials, bed: Bed, step, line: str) -> None:
    hosts = bed.inventory().hosts
    server = {"side": "server", "address": SERVER, "ports": [[PORT, "client"]], **KNOWN}
    trials.begin(hosts["server"], "closing", **server)
    client = trials.begin(hosts["client"], "closing", targets=[[SERVER, PORT]], **KNOWN)
    with pytest.raises(LabError, match=line):
        client.go(**step)
