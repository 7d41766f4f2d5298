"""Where a limit ends it: what is held stays, what is refused is counted, and asking goes on."""

import time
from pathlib import Path

import pytest
from agents import CLIENT, CLIENT6, PORT, SERVER, SERVER6, block, running, until

from bench.agent.spares import SPARES

SOFT = 200
BOTH = f"{SOFT}:1000"
SECOND = "198.18.1.2"


def descriptors(pid: int) -> int:
    """Open files of a process that has come to rest."""
    seen = [-1]

    def at_rest() -> bool:
        seen.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))
        return len(seen) > 5 and len(set(seen[-5:])) == 1

    assert until(at_rest), seen
    return seen[-1]


def held(agent) -> int:
    return agent.ask("status", "status")["held"]


def drained(client, server) -> None:
    client.ask("drain", "drained", how="rst", rate=0)
    assert until(lambda: held(server) == 0)


@pytest.mark.parametrize("listener", ["shared", "reuseport"])
@pytest.mark.parametrize("watch", ["epoll", "none"])
def test_a_server_out_of_descriptors_keeps_what_it_has_and_goes_on_asking(lab, listener, watch):
    server = lab.serve(nofile=BOTH, workers=1, listener=listener, watch=watch)
    (worker,) = server.workers()
    room = SOFT - descriptors(worker)
    client = lab.prepare(blocks=[block(500), block(50, source=SECOND)])
    ramped = client.ask("ramp", "ramped", upto=500)
    # All are established: the kernel completes handshakes as long as the queue has room.
    assert (ramped["held"], ramped["tried"]) == (500, 500)
    assert until(lambda: "EMFILE" in server.ask("status", "status")["errors"])
    assert held(server) == room
    assert lab.count("server", "established") == 500

    began, before = time.monotonic(), server.ask("status", "status")["errors"]["EMFILE"]
    assert until(lambda: server.ask("status", "status")["errors"]["EMFILE"] >= before + 3)
    more = server.ask("status", "status")["errors"]["EMFILE"] - before
    assert more <= (time.monotonic() - began) / 0.05 + 1  # a try at most every 50 ms

    server.ask("answer", "answering", on=True)
    echoed = client.ask("echo", "echoed", mode="all", drop=True, patience_ms=1000)
    assert (echoed["asked"], echoed["answered"], echoed["wrong"]) == (500, room, 0)
    assert echoed["dropped"] == 500 - room
    server.ask("answer", "answering", on=False)
    assert held(client) == room == held(server) == lab.count("server", "established")
    assert client.ask("verify", "verified")["alive"] == room

    # A place that becomes free is taken, behind all the dead ones in the queue.
    lab.net.run("client", "ss", "-K", "dst", SERVER, "sport", "<=", ":10019")
    assert client.ask("verify", "verified")["alive"] == room - 20
    assert client.ask("ramp", "ramped")["held"] == room + 30
    assert until(lambda: held(server) == room)
    drained(client, server)


def test_a_server_fills_all_its_workers_before_accept_refuses(lab):
    server = lab.serve(nofile=BOTH, workers=3)
    room = sum(SOFT - descriptors(worker) for worker in server.workers())
    planned = 3 * (SOFT - 64 - 1)
    client = lab.prepare(blocks=[block(1000)])
    client.ask("ramp", "ramped", upto=planned)
    assert until(lambda: held(server) == planned)
    assert server.ask("status", "status")["errors"] == {}
    client.ask("ramp", "ramped")
    assert until(lambda: held(server) == room)
    assert until(lambda: server.ask("status", "status")["errors"].get("EMFILE", 0) >= 3)
    assert client.ask("verify", "verified")["alive"] == 1000
    drained(client, server)


def test_a_server_that_is_just_full_has_refused_nobody(lab):
    server = lab.serve(nofile=BOTH, workers=1)
    (worker,) = server.workers()
    room = SOFT - descriptors(worker)
    client = lab.prepare(blocks=[block(room)])
    client.ask("ramp", "ramped")
    assert until(lambda: held(server) == room)
    time.sleep(0.3)  # some further tries
    assert server.ask("status", "status")["errors"] == {}


@pytest.mark.parametrize("count", [1, 2])
def test_a_client_out_of_descriptors_keeps_what_it_has(lab, count):
    server = lab.serve()
    client = lab.prepare(nofile=BOTH, workers=count, blocks=[block(1000)])
    room = sum(SOFT - descriptors(worker) for worker in client.workers())
    ramped = client.ask("ramp", "ramped")
    assert (ramped["reason"], ramped["held"], ramped["lost"]) == ("lost", room, 1000 - room)
    assert ramped["errors"] == {"EMFILE": 2 * (1000 - room)}  # each tried twice
    assert until(lambda: held(server) == room)
    assert client.ask("verify", "verified")["alive"] == room
    drained(client, server)


def test_workers_have_what_the_soft_limit_gives_or_the_hard_one(lab):
    lab.serve()
    client = lab.prepare(nofile=BOTH, blocks=[block(1000)])
    assert len(client.workers()) == 8  # ceil(1000 / (200 - 64))
    facts = client.ask("facts", "facts", sysctls=[])
    assert (facts["nofile_soft"], facts["nofile_hard"]) == (SOFT, 1000)


def test_raised_limits_are_found_as_they_were(lab):
    server = lab.serve()
    client = lab.agent("client", nofile=BOTH)
    spec = lab.client_spec(blocks=[block(1800)], nofile="hard", workers=2)
    client.ask("prepare", "prepared", spec=spec)
    lab.open()
    assert client.ask("facts", "facts", sysctls=[])["nofile_soft"] == SOFT
    assert client.ask("ramp", "ramped")["held"] == 1800  # 900 each, of 1000
    assert until(lambda: held(server) == 1800)


def test_source_ports_left_to_the_kernel_are_used_up_exactly(lab):
    lab.net.run("client", "sysctl", "-qw", "net.ipv4.ip_local_port_range=20001 20100")
    ends = [[SERVER, PORT], [SERVER, PORT + 1], [SERVER6, PORT]]
    server = lab.serve(endpoints=ends)
    blocks = [
        block(300),
        block(300, source=SECOND),
        block(300, source=SECOND, target_port=PORT + 1, first_port=20000),
        block(300, source=CLIENT6, target=SERVER6),
    ]
    client = lab.prepare(blocks=blocks, source_ports="kernel")
    ramped = client.ask("ramp", "ramped", upto=300)
    assert (ramped["reason"], ramped["held"], ramped["errors"]) == ("complete", 300, {})
    ramped = client.ask("ramp", "ramped")
    assert (ramped["reason"], ramped["held"], ramped["lost"]) == ("lost", 400, 800)
    assert ramped["errors"] == {"EADDRNOTAVAIL": 1600}  # each tried twice
    found = lab.net.run("client", "ss", "-Htn", "state", "established").splitlines()
    pairs = {(row.split()[2], row.split()[3]) for row in found}
    assert len(pairs) == 400
    for source in (CLIENT, SECOND):
        used = {int(ours.rsplit(":", 1)[1]) for ours, _ in pairs if ours.startswith(source + ":")}
        assert used == set(range(20001, 20101))
    assert until(lambda: held(server) == 400)
    assert client.ask("verify", "verified")["alive"] == 400
    drained(client, server)


def test_a_ramp_goes_on_where_the_last_ended(lab):
    server = lab.serve()
    client = lab.prepare(nofile=300, blocks=[block(1000), block(1000, source=SECOND)], active=2)
    for upto in (1, 500, 500, 1200):
        ramped = client.ask("ramp", "ramped", upto=upto, most_lost=64)
        assert (ramped["reason"], ramped["tried"], ramped["held"]) == ("complete", upto, upto)
        assert until(lambda wanted=upto: held(server) == wanted)
        assert client.ask("verify", "verified")["alive"] == upto
    ramped = client.ask("ramp", "ramped")
    assert (ramped["reason"], ramped["tried"], ramped["held"]) == ("complete", 2000, 2000)
    assert until(lambda: held(server) == 2000)


@pytest.fixture
def silence(lab):
    """Drops SYNs to the server's port while it is on."""
    net = lab.net
    net.run("server", "nft", "add", "table", "inet", "t")
    net.run("server", "nft", "add chain inet t i { type filter hook input priority 0; }")

    def switch(on: bool) -> None:
        if on:
            net.run("server", "nft", *f"add rule inet t i tcp dport {PORT} drop".split())
        else:
            net.run("server", "nft", "flush", "chain", "inet", "t", "i")

    yield switch
    net.run("server", "nft", "delete", "table", "inet", "t")


def test_a_ramp_ends_when_so_many_are_lost(lab, silence):
    server = lab.serve()
    client = lab.prepare(retries=0, connect_timeout_ms=200, max_in_flight=32)
    assert client.ask("ramp", "ramped", upto=300)["held"] == 300
    silence(True)
    ramped = client.ask("ramp", "ramped", most_lost=40)
    assert (ramped["reason"], ramped["held"]) == ("lost", 300)
    assert 40 <= ramped["lost"] <= 40 + 32
    assert 340 <= ramped["tried"] <= 300 + ramped["lost"] + 32  # the rest is given up
    assert set(ramped["errors"]) == {"ETIMEDOUT"}
    silence(False)
    again = client.ask("ramp", "ramped", upto=ramped["tried"] + 200, most_lost=40)
    assert (again["reason"], again["held"]) == ("complete", 500)
    assert again["lost"] == ramped["lost"]
    assert until(lambda: held(server) == 500)
    silence(True)  # the lost of earlier ramps count for those alone
    third = client.ask("ramp", "ramped", most_lost=40)
    assert (third["reason"], third["held"]) == ("lost", 500)
    assert 40 <= third["lost"] - again["lost"] <= 40 + 32


def test_only_fresh_connections_are_asked_and_dropped(lab):
    server = lab.serve()
    client = lab.prepare(nofile=300, blocks=[block(1000)])
    client.ask("ramp", "ramped", upto=700)
    assert until(lambda: held(server) == 700)
    client.ask("ramp", "ramped")
    assert until(lambda: held(server) == 1000)
    echoed = client.ask("echo", "echoed", mode="fresh", drop=True)
    assert (echoed["asked"], echoed["answered"], echoed["dropped"]) == (300, 300, 0)
    # What the peer has closed cannot answer, and is let go of.
    lab.net.run("server", "ss", "-K", "src", SERVER, "sport", f":{PORT}", "dport", "<=", ":10002")
    gone = 1000 - lab.count("server", "established")
    echoed = client.ask("echo", "echoed", mode="all", drop=True)
    assert (echoed["answered"], echoed["dropped"]) == (1000 - gone, gone)
    assert 0 < gone == 1000 - held(client)
    echoed = client.ask("echo", "echoed", mode="fresh")
    assert echoed["asked"] == 300


def test_as_many_workers_as_the_pids_limit_lets_there_be(lab):
    server = lab.serve(nproc=24, workers=100, limit=True)
    workers = server.workers()
    # One is the agent, one its doorkeeper; some are left for the tools that gather evidence.
    assert 10 <= len(workers) <= 22
    assert server.ask("status", "status")["errors"] == {"EAGAIN": 1}
    found = server.ask("collect", "collected", phase="before", count=[[SERVER, PORT]])
    assert (found["workers"], found["established"]) == (len(workers), 0)
    assert {"ss_s", "nstat"} <= set(found["texts"])
    client = lab.prepare(nproc=24, nofile=300, workers=50, limit=True)
    assert client.ask("ramp", "ramped")["held"] == 2000
    assert until(lambda: held(server) == 2000)


@pytest.mark.parametrize("listener", ["shared", "reuseport"])
def test_too_few_pids_are_one_line_and_leave_nothing(lab, listener):
    server = lab.agent("server", nproc=12)
    spec = lab.server_spec(workers=50, listener=listener)
    server.send("serve", spec=spec)
    fault = server.hear("error")
    assert fault["kind"] == "fault"
    assert fault["message"].startswith("fork: EAGAIN at worker ")
    assert fault["message"].endswith(
        " of 50, pids limit (cgroup pids.max, RLIMIT_NPROC, kernel.pid_max)"
    )
    assert "\n" not in fault["message"]
    assert server.workers() == []
    assert lab.sockets("server") == 0
    assert descriptors(server.process.pid) < 10
    server.ask("serve", "serving", spec=lab.server_spec(workers=2))
    client = lab.prepare(blocks=[block(100)])
    assert client.ask("ramp", "ramped")["held"] == 100


def test_a_client_short_of_pids_can_be_told_again(lab):
    lab.serve()
    client = lab.agent("client", nproc=12)
    client.send("prepare", spec=lab.client_spec(workers=50))
    assert "pids limit" in client.hear("error")["message"]
    assert client.workers() == []
    client.ask("prepare", "prepared", spec=lab.client_spec(workers=2, blocks=[block(100)]))
    assert client.ask("ramp", "ramped")["held"] == 100
    assert [running(pid) for pid in client.workers()] == [True, True]


def test_more_workers_than_descriptors_for_their_pipes(lab):
    server = lab.agent("server", nofile=100)
    server.send("serve", spec=lab.server_spec(workers=50))
    refused = server.hear("error")
    assert refused["kind"] == "input"
    assert (
        refused["message"] == "50 workers, but the limit of 100 open files allows 36: raise nofile"
    )
    spec = lab.server_spec(workers=50, limit=True)
    assert server.ask("serve", "serving", spec=spec)["workers"] == 36


def test_evidence_of_a_host_without_a_task(lab):
    agent = lab.agent("server")
    found = agent.ask("collect", "collected", phase="before", count=None)
    assert (found["held"], found["workers"], found["established"]) == (0, 0, None)
    assert 0 < found["pss_kib"] < 20 * 1024
    assert found["missing"] == {}
    counted = agent.ask("collect", "collected", phase="before", count=[[SERVER, PORT]])
    assert counted["established"] == 0
    agent.ask("facts", "facts", sysctls=[])
    agent.ask("serve", "serving", spec=lab.server_spec())


def test_no_task_begins_while_evidence_is_gathered(lab):
    agent = lab.agent("server")
    agent.send("collect", phase="before", count=None)
    agent.send("serve", spec=lab.server_spec())
    assert agent.hear("error")["message"] == "serve while facts, collect or count is under way"
    assert agent.hear("collected")["workers"] == 0
    agent.ask("serve", "serving", spec=lab.server_spec())


def idle_files(pid: int) -> int:
    """Open files of a process that are /dev/null."""
    links = (path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir())
    return sum(link == Path("/dev/null") for link in links)


def test_files_are_kept_back_by_the_agent_alone(lab):
    server = lab.serve()
    client = lab.prepare(blocks=[block(100)])
    for agent in (server, client):
        assert until(lambda one=agent: idle_files(one.process.pid) == SPARES)
        assert all(idle_files(worker) <= 2 for worker in agent.workers())
        agent.ask("collect", "collected", phase="peak", count=None)
        assert idle_files(agent.process.pid) == SPARES
    assert client.ask("ramp", "ramped")["held"] == 100
    assert until(lambda: held(server) == 100)
