"""Whole runs over real agents in namespaces: the controller without Ansible and SSH."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from agents import CLIENT, CLIENT6, SERVER, running
from beds import Bed

from bench import scenario
from bench.errors import InputError, LabError
from bench.hosts import survey
from bench.model import capacity
from bench.plan import planning
from bench.plan.topology import Topology


def test_a_run_from_end_to_end(bed: Bed) -> None:
    done = bed.run(liveness="all")
    counts = done.measured.established
    assert (done.verdict, done.bound_by) == ("pass", "none"), done.reason
    assert (counts.clients, counts.servers, counts.ss) == (3000, 3000, 3000)
    assert (done.measured.lost, done.measured.left_after) == (0, 0)
    assert (done.measured.liveness.asked, done.measured.liveness.answered) == (3000, 3000)
    assert set(done.hosts["server"].phases) == {"before", "peak", "hold_end", "after"}
    assert done.hosts["server"].phases["after"].held == 0
    assert done.predicted.max_connections >= 3000
    assert done.curve[-1].held == 0
    assert max(point.held for point in done.curve) == 3000
    assert bed.clean()
    folder = bed.store.root / done.run_id
    assert json.loads((folder / "run.json").read_text())["schema"] == 1
    assert (bed.store.root / "latest").resolve() == folder
    assert "3,000" in (folder / "report.html").read_text()
    assert (folder / "raw" / "server" / "peak" / "slabinfo").read_text().startswith("slabinfo")
    assert {
        json.loads(line)["host"] for line in (folder / "samples.ndjson").read_text().splitlines()
    } == {
        "server",
        "client",
    }


def test_rounds_fall_into_the_hold(bed: Bed) -> None:
    done = bed.run(rounds=2, sequential_sample=50)
    assert done.verdict == "pass", done.reason
    assert "6,050 bytes answered in 3 echo rounds" in done.reason
    found = [(one.mode, one.asked, one.answered) for one in done.measured.rounds]
    assert found == [("pipelined", 3000, 3000)] * 2 + [("sequential", 50, 50)]
    for one in done.measured.rounds:
        assert one.seconds > 0 and one.latency_us.max >= one.latency_us.p50 > 0
        assert one.client_cpu_seconds > 0 and one.server_cpu_seconds > 0
    assert [now.phase for now in bed.seen if now.note.startswith("3,000 of 3,000 bytes")] == [
        "round 1",
        "round 2",
    ]
    page = (bed.store.root / done.run_id / "report.html").read_text()
    assert "Echo rounds" in page
    assert bed.clean()


def test_a_run_over_ipv6(bed: Bed) -> None:
    done = bed.run([CLIENT, CLIENT6], family=6, server_ports=[5000, 5001])
    counts = done.measured.established
    assert (done.verdict, done.bound_by) == ("pass", "none"), done.reason
    assert (counts.clients, counts.servers, counts.ss) == (3000, 3000, 3000)
    assert done.measured.liveness.asked == done.measured.liveness.answered > 0
    assert done.measured.left_after == 0
    # Both ends: 2.3 KiB each or more (bench.model.objects).
    assert done.measured.kernel_bytes_per_connection.by_cache["TCPv6"] > 2 * 2_000
    assert bed.clean()


def test_a_bare_accept_loop_and_closing_by_fin(bed: Bed) -> None:
    done = bed.run(watch="none", liveness="sample", liveness_sample=100, listener="reuseport")
    assert done.verdict == "pass", done.reason
    assert done.measured.liveness.answered == 100
    assert bed.clean()


def test_several_ports_hold_more_than_one_address_and_port(bed: Bed) -> None:
    done = bed.run(
        connections=500,
        first_client_port=20000,
        last_client_port=20199,
        server_ports=[5000, 5001, 5002],
    )
    assert done.verdict == "pass", done.reason
    assert done.measured.established.ss == 500


def test_the_memory_floor_stops_the_ramp(bed: Bed) -> None:
    done = bed.run(memory_floor_mib=1_048_576)
    assert (done.verdict, done.bound_by) == ("fail", "memory")
    assert done.measured.established.clients < 3000
    assert bed.clean()


def test_an_address_that_is_on_no_host(bed: Bed) -> None:
    with pytest.raises(InputError, match=r"1 planned client address on no host"):
        bed.run(clients=["198.18.1.77"])
    assert not list(bed.store.root.iterdir())
    assert bed.clean()


def test_more_than_the_tuples_touches_nothing(bed: Bed) -> None:
    with pytest.raises(InputError, match=r"connections: got 65000, expected at most the 64512 tu"):
        bed.run(connections=65_000)
    assert not bed.links
    assert not bed.store.root.exists()


def test_an_agent_that_is_killed_aborts_the_run(bed: Bed) -> None:
    def kill_later() -> None:
        bed.await_hold()
        os.kill(bed.agent_pid("client"), signal.SIGKILL)

    thread = threading.Thread(target=kill_later)
    thread.start()
    with pytest.raises(LabError, match="host client: the client agent ended unexpectedly"):
        bed.run(hold_seconds=30)
    thread.join()
    kept = next(bed.store.runs())
    assert kept.verdict == "aborted"
    assert kept.measured.established.ss == 3000
    assert not running(bed.agent_pid("server"))


CLOSES_FIRST = """
import socket
with socket.create_server(("{server}", 5000)) as listener:
    print("listening", flush=True)
    with listener.accept()[0] as made:
        made.shutdown(socket.SHUT_WR)
        made.recv(1)
"""
CLOSES_THEN = """
import socket
with socket.create_connection(("{server}", 5000)) as made:
    made.recv(1)
"""


def test_sockets_that_another_has_left_are_not_this_runs(bed: Bed) -> None:
    """Whoever closes first is in TIME-WAIT for a minute (RFC 9293): a killed server, for one."""
    words = [*bed.net.enter("server"), sys.executable, "-c", CLOSES_FIRST.format(server=SERVER)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as server:
        assert server.stdout
        assert server.stdout.readline() == b"listening\n"
        bed.net.run("client", sys.executable, "-c", CLOSES_THEN.format(server=SERVER))
        assert server.wait(5) == 0
    assert bed.net.run("server", "ss", "-Htan", "state", "time-wait")
    done = bed.run(connections=200)
    assert (done.verdict, done.measured.left_after) == ("pass", 0), done.reason


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler, also where a shell started the tests with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_cleans_up_and_keeps_what_there_is(bed: Bed) -> None:
    def interrupt_later() -> None:
        bed.await_hold()
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt_later)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        bed.run(hold_seconds=30)
    thread.join()
    assert next(bed.store.runs()).reason == "interrupted"
    assert bed.clean()


def test_how_many_fit_above_the_floor(bed: Bed) -> None:
    """The floor lies 192 MiB below what is free: reached long before 60,000 connections."""
    with bed.memory(1_000 + 192):
        done = bed.run(
            connections=60_000,
            memory_floor_mib=1_000,
            expect="floor",
            connect_rate=5_000,
            watch="none",
        )
    counts = done.measured.established
    assert (done.verdict, done.bound_by) == ("pass", "memory"), done.reason
    assert 0 < counts.clients == counts.servers == counts.ss < 60_000
    assert done.predicted.forecast is not None
    assert any(now.note.startswith("server has MemFree") for now in bed.seen)
    assert bed.clean()


def test_hosts_are_looked_at_and_nothing_is_opened(bed: Bed) -> None:
    wanted = scenario.load("ceiling")
    hosts = bed.inventory([CLIENT, "198.18.99.99"])
    found, texts = survey.look(Topology(wanted, hosts), bed.connect)
    assert set(found) == set(texts) == {"server", "client"}
    before = found["server"].phases["before"]
    assert (before.held, before.workers, before.established) == (0, 0, None)
    assert before.meminfo_kib["MemAvailable"] > 0 and before.slab_bytes["TCP"] > 0
    assert found["client"].limits["own_tasks"]
    assert found["client"].limits["tracking"] is False
    there, missing = planning.there(Topology(wanted, hosts), found)
    assert (dict(there), missing) == ({"client": [CLIENT]}, 1)
    tuples = planning.tuples(Topology(wanted, bed.inventory()), there)
    predicted = capacity.predict(Topology(wanted, bed.inventory()), found, texts, tuples)
    assert predicted.limits["tuples"] == tuples == 64_512
    assert {"memory", "nofile", "fs.file-max", "pids"} <= predicted.limits.keys()
    assert predicted.notes == []
    assert bed.clean()


def test_churn_and_rounds_throughout_the_hold(bed: Bed) -> None:
    done = bed.run(
        connections=997, workers=3, hold_seconds=6, churn_percent=25, round_every_seconds=1
    )
    assert done.verdict == "pass", done.reason
    churn, memory = done.measured.churn, done.measured.agents_memory
    assert churn is not None and memory is not None
    assert churn.closed == churn.opened > 997
    assert (churn.lost, done.measured.lost, churn.errors) == (0, 0, {})
    assert churn.closed <= 997 * 0.25 * churn.seconds + len(memory.points)  # rounded in each
    assert churn.held == done.measured.established
    assert churn.latency_us.max >= churn.latency_us.p50 > 0
    assert [one.answered for one in done.measured.rounds] == [997] * len(memory.points)
    assert len(memory.points) >= 5
    assert all(one.server_kib > 2_000 and one.client_kib > 2_000 for one in memory.points)
    assert memory.server_kib_per_minute is not None and memory.client_kib_per_minute is not None
    assert f"{churn.opened:,} connections closed and reopened meanwhile" in done.reason
    assert done.hosts["server"].phases["after"].nstat.get("TcpExtTW", 0) == 0
    assert done.measured.left_after == 0
    page = (bed.store.root / done.run_id / "report.html").read_text()
    assert "During the hold" in page
    assert any("agents' memory: servers" in now.note for now in bed.seen)
    assert bed.clean()


def test_churn_in_a_hold_that_is_over_already(bed: Bed) -> None:
    done = bed.run(connections=97, hold_seconds=0, churn_percent=50)
    assert done.verdict == "pass", done.reason
    assert done.measured.churn is not None and done.measured.churn.closed > 20
    assert done.measured.rounds == []


@pytest.mark.usefixtures("interruptible")
def test_churn_that_is_interrupted_leaves_nothing(bed: Bed) -> None:
    def interrupt_later() -> None:
        bed.await_hold()
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt_later)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        bed.run(hold_seconds=30, churn_percent=20, round_every_seconds=2)
    thread.join()
    kept = next(bed.store.runs())
    assert (kept.verdict, kept.reason) == ("aborted", "interrupted")
    assert kept.measured.churn is not None and kept.measured.churn.closed > 0
    assert bed.clean()
