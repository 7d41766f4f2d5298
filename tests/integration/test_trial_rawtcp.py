"""Connections shaken by hand between namespaces."""

from __future__ import annotations

import os
import secrets
import signal
from pathlib import Path

import pytest
from agents import CLIENT, CONTROL, PORT, SERVER, running, until
from beds import Bed
from sides import lab

from bench.claims.ends import between
from bench.claims.statements import userland_tcp
from bench.errors import LabError
from bench.hosts.trials import Trial, Trials

FIRST = userland_tcp.FIRST_PORT
SMALL = userland_tcp.UserlandTcpParameters(tried=10, connections=300, echoes=40)


@pytest.fixture
def trials(bed: Bed):
    with Trials(bed.connect) as made:
        yield made


def both(trials: Trials, bed: Bed, **changed: object) -> tuple[Trial, Trial]:
    known = {"nonce": secrets.token_hex(16), "control": [SERVER, CONTROL]}
    hosts = bed.inventory().hosts
    server = trials.begin(hosts["server"], "echoer", endpoint=[SERVER, PORT], **known)
    args = {"source": CLIENT, "target": [SERVER, PORT], "first_port": FIRST, "count": 100}
    return server, trials.begin(hosts["client"], "rawtcp", **known, **args, **changed)


def test_the_kernel_spoils_them_until_it_is_kept_out(bed: Bed, tmp_path: Path) -> None:
    found = userland_tcp.measure_userland_tcp(lab(bed, tmp_path), SMALL)
    assert found.tried_answered == found.tried_resets == found.tried == 10
    assert found.tried_out_rsts >= 10
    assert (found.tried_held, found.held, found.wanted) == (0, 300, 300)
    assert (found.resets, found.kernel_sockets, found.left) == (0, 0, 0)
    assert found.out_rsts >= 300  # counted where they are made, dropped thereafter
    assert found.echoes_answered == found.echoes_asked == 40
    assert userland_tcp.judge_userland_tcp(found).verdict == "confirmed"
    assert until(bed.clean)
    assert "connlab_userland" not in bed.net.run("client", "nft", "list", "tables")


def established(bed: Bed) -> list[str]:
    """The server's connections."""
    argv = ["ss", "-Htn", "state", "established", f"sport = :{PORT}"]
    return bed.net.run("server", *argv).splitlines()


@pytest.mark.parametrize("how", ["dismissed", "terminated"])
def test_nothing_stays_on_the_server_when_the_client_ends(
    how: str, trials: Trials, bed: Bed, tmp_path: Path
) -> None:
    client = both(trials, bed)[1]
    chain = userland_tcp._chain(between(lab(bed, tmp_path), first=PORT), 100, client.first["mark"])
    trials.begin(bed.inventory().hosts["client"], "guard", tables={userland_tcp.TABLE: chain})
    assert client.go(do="raw", ports=100)["held"] == 100
    assert len(established(bed)) == 100
    process = client.agent.process
    if how == "dismissed":
        client.end()
    else:
        os.kill(process.child.pid, signal.SIGTERM)
    assert until(lambda: not running(process.child.pid))
    assert until(lambda: not established(bed))


def test_the_kernels_own_are_counted_and_closed(trials: Trials, bed: Bed) -> None:
    server, client = both(trials, bed)
    assert client.go(do="kernel", ports=80)["held"] == 80
    assert until(lambda: server.go()["held"] == 0)


def test_a_server_that_does_not_prove_itself_gets_no_segment(trials: Trials, bed: Bed) -> None:
    host = bed.inventory().hosts["client"]
    with pytest.raises(LabError, match="is not a server agent of this run"):
        trials.begin(
            host,
            "rawtcp",
            nonce="ab" * 16,
            control=[SERVER, CONTROL],
            source=CLIENT,
            target=[SERVER, PORT],
            first_port=FIRST,
            count=5,
        )


def test_what_makes_no_sense_is_refused(trials: Trials, bed: Bed) -> None:
    with pytest.raises(LabError, match="do: got 'dance', expected raw, echo"):
        both(trials, bed)[1].go(do="dance")


@pytest.mark.parametrize(("first", "count"), [(80, 5), (65_000, 1000), (20_000, 0)])
def test_ports_are_bounded(trials: Trials, bed: Bed, first: int, count: int) -> None:
    with pytest.raises(LabError, match=r"count: got .* expected ports from 1024 to 65535"):
        trials.begin(
            bed.inventory().hosts["client"],
            "rawtcp",
            source=CLIENT,
            target=[SERVER, PORT],
            first_port=first,
            count=count,
        )
