"""What happens to connections while they are held, and what one side alone says of it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from agents import PORT, SERVER, until
from beds import Bed
from test_agent_proof import NAT_OUT, STRANGER
from test_lying_agents import lying

from bench.errors import LabError

Rule = Callable[..., None]


@pytest.fixture
def nft(bed: Bed) -> Iterator[Rule]:
    """Adds rules on a host, in a table that goes with the test."""
    tables = []

    def add(host: str, chain: str, *rules: str) -> None:
        bed.net.run(host, "nft", "add", "table", "ip", "held")
        tables.append(host)
        bed.net.run(host, "nft", f"add chain ip held c {{ {chain} }}")
        for rule in rules:
            bed.net.run(host, "nft", *f"add rule ip held c {rule}".split())

    yield add
    for host in tables:
        bed.net.run(host, "nft", "delete", "table", "ip", "held")


def meanwhile(bed: Bed, act: Callable[[], object]) -> threading.Thread:
    """Do something a second after a run has begun to hold."""

    def later() -> None:
        assert until(lambda: any(now.phase == "hold" and now.held for now in list(bed.seen)), 20)
        time.sleep(1)
        act()

    thread = threading.Thread(target=later)
    thread.start()
    return thread


def test_ends_that_a_server_has_lost_and_its_client_has_not(bed: Bed, nft: Rule) -> None:
    def destroy() -> None:
        nft("server", "type filter hook output priority 0;", "tcp flags & (rst|fin) != 0 drop")
        bed.net.run("server", "ss", "-K", "state", "established", f"( sport = {PORT} )")

    thread = meanwhile(bed, destroy)
    done = bed.run(connections=300, hold_seconds=5)
    thread.join()
    assert done.verdict == "fail"
    assert done.reason == (
        "at the end of the hold the three counts disagree: clients 300, servers 0, ss 0, "
        "expected 300"
    )
    assert done.measured.established.ss == 300


@pytest.mark.parametrize(
    ("host", "lie", "counts"),
    [
        (
            "server",
            "message.update(held=0, held_each=[0], established=0)",
            "clients 300, servers 0, ss 0",
        ),
        ("server", "message.update(held=0, held_each=[0])", "clients 300, servers 0, ss 300"),
    ],
)
def test_what_is_said_at_the_end_of_the_hold_counts(
    bed: Bed, host: str, lie: str, counts: str
) -> None:
    last = 'if event == "collected" and message["phase"] == "hold_end": '
    lying(bed, host, last + lie)
    done = bed.run(connections=300)
    assert done.verdict == "fail"
    assert f"the end of the hold the three counts disagree: {counts}, expected 300" in done.reason


@pytest.mark.parametrize(
    ("host", "lie", "line"),
    [
        (
            "client",
            'if event == "verified": message.update(alive=0, dead=0)',
            r"^host client: protocol: verified: alive: got 0, expected the 300 held$",
        ),
        (
            "server",
            'if event == "answering": message["echoes"] = 0',
            r"^the clients report 300 answered echoes, but the servers answered 0: one of",
        ),
    ],
)
def test_one_side_alone_is_not_believed(bed: Bed, host: str, lie: str, line: str) -> None:
    lying(bed, host, lie)
    with pytest.raises(LabError, match=line):
        bed.run(connections=300, liveness="all")
    assert bed.clean()


def test_connections_that_come_back_elsewhere_end_a_long_hold(bed: Bed, nft: Rule) -> None:
    words = [*bed.net.enter("server"), sys.executable, "-c", STRANGER, SERVER, str(PORT + 7), "20"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as stranger:
        assert stranger.stdout and stranger.stdout.readline() == "listening\n"
        redirect = f"tcp dport {PORT} dnat to :{PORT + 7}"
        thread = meanwhile(bed, lambda: nft("client", NAT_OUT, redirect))
        with pytest.raises(
            LabError, match=r"^the clients hold [0-9]+ connections more than the servers"
        ):
            bed.run(
                connections=300, hold_seconds=600, churn_percent=10, backlog=64, max_in_flight=32
            )
        thread.join()
        assert bed.clean(["established"])
        stranger.kill()
