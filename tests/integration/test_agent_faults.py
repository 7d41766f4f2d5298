"""What goes wrong is counted, named, bounded, and leaves nothing behind."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agents import CONTROL, PORT, SERVER, Agent, block, running, until

LISTEN = """
import socket, sys, time
listener = socket.create_server(("{address}", {port}))
print("listening", flush=True)
taken = []
listener.settimeout(float(sys.argv[1]))
try:
    while True:
        taken.append(listener.accept()[0])
        taken[-1].sendall(b"x" * 64)
except TimeoutError:
    print(len(taken), flush=True)
"""


@pytest.fixture
def stranger(lab):
    """A listener that is nobody's agent; end it to learn how many connections it got."""
    started = []

    def start(port: int, seconds: float):
        words = [*lab.net.enter("server"), sys.executable, "-c"]
        code = LISTEN.format(address=SERVER, port=port)
        process = subprocess.Popen([*words, code, str(seconds)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "listening\n"
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_refused_port_is_counted_and_not_fatal(lab):
    server = lab.serve(endpoints=[[SERVER, PORT], [SERVER, PORT + 1]])
    blocks = [block(200, target_port=PORT + 1), block(300)]
    client = lab.prepare(blocks=blocks, retries=2)
    lab.net.run("server", "nft", "add", "table", "inet", "t")
    try:
        lab.net.run("server", "nft", "add chain inet t i { type filter hook input priority 0; }")
        rule = f"add rule inet t i tcp dport {PORT + 1} reject with tcp reset"
        lab.net.run("server", "nft", *rule.split())
        ramped = client.ask("ramp", "ramped")
    finally:
        lab.net.run("server", "nft", "delete", "table", "inet", "t")
    assert (ramped["reason"], ramped["held"], ramped["lost"]) == ("lost", 300, 200)
    assert ramped["errors"] == {"ECONNREFUSED": 600}  # each of 200 three times
    assert until(lambda: server.ask("status", "status")["held"] == 300)


def test_silent_target_times_out(lab):
    lab.serve()
    client = lab.prepare(blocks=[block(20)], retries=0, connect_timeout_ms=300)
    lab.net.run("server", "nft", "add", "table", "inet", "t")
    try:
        lab.net.run("server", "nft", "add chain inet t i { type filter hook input priority 0; }")
        lab.net.run("server", "nft", *f"add rule inet t i tcp dport {PORT} drop".split())
        ramped = client.ask("ramp", "ramped")
    finally:
        lab.net.run("server", "nft", "delete", "table", "inet", "t")
    assert ramped["errors"] == {"ETIMEDOUT": 20}
    assert (ramped["held"], ramped["lost"]) == (0, 20)


def test_port_taken_on_the_client_is_counted(lab):
    lab.serve()
    client = lab.prepare(blocks=[block(10)], retries=1)
    words = [*lab.net.enter("client"), sys.executable, "-c"]
    code = LISTEN.format(address="198.18.1.1", port=10003)
    with subprocess.Popen([*words, code, "20"], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        ramped = client.ask("ramp", "ramped")
        holder.kill()
    assert (ramped["held"], ramped["lost"]) == (9, 1)
    assert ramped["errors"] == {"EADDRINUSE": 2}


def test_strangers_listener_is_refused_before_any_data_connection(lab, stranger):
    control, data = stranger(CONTROL, 3), stranger(PORT, 3)
    client = lab.agent("client")
    client.send("prepare", spec=lab.client_spec())
    refused = client.hear("error")
    assert refused["kind"] == "refused"
    assert f"{SERVER} port {CONTROL} is not a server agent of this run" in refused["message"]
    assert control.communicate()[0] == "1\n"
    assert data.communicate()[0] == "0\n"


def test_server_of_another_run_is_refused(lab):
    server = lab.serve()
    client = lab.agent("client")
    client.send("prepare", spec=lab.client_spec(nonce=os.urandom(16).hex()))
    assert client.hear("error")["kind"] == "refused"
    assert server.ask("status", "status")["held"] == 0


def test_target_that_is_not_the_servers_is_refused(lab, stranger):
    data = stranger(PORT + 7, 2)
    lab.serve()
    client = lab.agent("client")
    blocks = [block(10), block(10, target_port=PORT + 7)]
    client.send("prepare", spec=lab.client_spec(blocks=blocks))
    refused = client.hear("error")
    assert refused["kind"] == "refused"
    assert f"{SERVER} port {PORT + 7} belongs to no server agent" in refused["message"]
    assert data.communicate()[0] == "0\n"


def test_nobody_there_is_refused(lab):
    client = lab.agent("client")
    client.send("prepare", spec=lab.client_spec())
    refused = client.hear("error")
    assert refused["kind"] == "refused"
    assert os.strerror(errno.ECONNREFUSED) in refused["message"]


def test_port_in_use_is_a_fault_that_names_it(lab, stranger):
    stranger(PORT, 10)
    server = lab.agent("server")
    server.send("serve", spec=lab.server_spec())
    fault = server.hear("error")
    assert fault["kind"] == "fault"
    assert f"{SERVER}:{PORT}" in fault["message"]
    assert server.workers() == []
    server.send("serve", spec=lab.server_spec(endpoints=[[SERVER, PORT + 1]]))
    server.hear("serving")


def test_bad_input_is_named_and_changes_nothing(lab):
    server = lab.agent("server")
    for changed, word in (
        ({"connections": 0}, "connections"),
        ({"endpoints": []}, "endpoints"),
        ({"endpoints": [["198.18.0.300", PORT]]}, "198.18.0.300"),
        ({"listener": "both"}, "listener"),
        ({"nonce": "abc"}, "nonce"),
        ({"nap_ms": -1}, "nap_ms"),
    ):
        server.send("serve", spec=lab.server_spec(**changed))
        error = server.hear("error")
        assert error["kind"] == "input" and word in error["message"]
    for line in (b"rubbish\n", b"[]\n", b'{"op": "dance"}\n', b'{"op": "ramp"}\n'):
        server.process.stdin.write(line)
        server.process.stdin.flush()
        assert server.hear("error")["kind"] == "input"
    assert server.workers() == []
    assert lab.sockets("server") == 0


def test_rate_is_kept(lab):
    lab.serve()
    client = lab.prepare(nofile=300, connect_rate=1000, active=2)
    began = time.monotonic()
    assert client.ask("ramp", "ramped")["held"] == 2000
    # However slow or fast a machine is: 2,000 at 1,000/s cannot be done in less.
    assert time.monotonic() - began >= 1.9


def test_halt_keeps_what_is_held(lab):
    server = lab.serve()
    client = lab.prepare(connect_rate=500)
    client.send("ramp")
    assert until(lambda: client.ticks and client.ticks[-1]["held"] > 50)
    client.send("halt")
    client.hear("halted")
    ramped = client.hear("ramped")
    assert ramped["reason"] == "halted"
    assert 50 < ramped["held"] < 2000
    assert until(lambda: server.ask("status", "status")["held"] == ramped["held"])
    assert client.ask("verify", "verified")["alive"] == ramped["held"]


def test_memory_floor_stops_the_ramp(lab):
    server = lab.serve(memory_floor_kib=1 << 39)
    assert until(lambda: server.floors)
    client = lab.prepare(memory_floor_kib=1 << 39)
    ramped = client.ask("ramp", "ramped")
    assert (ramped["reason"], ramped["held"], ramped["lost"]) == ("memory", 0, 0)
    assert client.floors[0]["mem_free_kib"] < client.floors[0]["floor_kib"]


def test_server_at_its_floor_lets_nobody_in(lab):
    server = lab.serve(memory_floor_kib=1 << 39)
    assert until(lambda: server.floors)
    client = lab.prepare(blocks=[block(100)], connect_timeout_ms=500, retries=0)
    ramped = client.ask("ramp", "ramped")
    assert ramped["reason"] == "lost"
    assert ramped["errors"]["ETIMEDOUT"] >= 98  # an accept queue of 0 still takes one
    assert server.ask("status", "status")["held"] == 0


@pytest.mark.parametrize("end", ["close", "term"])
def test_end_of_input_closes_everything(lab, end):
    server, client = lab.serve(nofile=300), lab.prepare(nofile=300)
    client.ask("ramp", "ramped")
    workers = server.workers() + client.workers()
    for agent in (client, server):
        began = time.monotonic()
        if end == "close":
            agent.process.stdin.close()
        else:
            agent.process.send_signal(signal.SIGTERM)
        agent.process.wait(timeout=5)
        assert time.monotonic() - began < 2
        assert not agent.home.exists()
        assert not agent.strangers
    assert not [pid for pid in workers if running(pid)]
    assert (lab.sockets("server"), lab.sockets("client")) == (0, 0)


def test_the_end_does_not_wait_for_a_slow_drain(lab):
    """Killed in the middle of it, workers would close with FIN, and leave TIME-WAIT behind."""
    server, client = lab.serve(), lab.prepare(blocks=[block(400)])
    client.ask("ramp", "ramped")
    client.send("drain", how="rst", rate=50)
    assert until(lambda: client.ticks[-1]["closed"] > 0)
    server.process.kill()
    server.process.wait()
    client.process.stdin.close()
    client.process.wait(timeout=5)
    assert until(lambda: lab.sockets("client") == 0)
    assert until(lambda: lab.sockets("server") == 0)


def test_an_agent_without_a_task_ends_without_its_controller(lab):
    """It gives a sign of life each second: that is none of its controller's."""
    agent = Agent(lab._packed, lab.net.enter("server"), silence=2.5)
    try:
        began = time.monotonic()
        agent.process.wait(timeout=20)
        assert 2 < time.monotonic() - began < 10
        assert agent.alive >= 2
    finally:
        agent.close()


def test_stop_is_answered(lab):
    server = lab.serve()
    server.send("stop")
    server.hear("stopped")
    assert server.process.wait(timeout=3) == 0


def test_killed_agent_leaves_no_worker(lab):
    server, client = lab.serve(nofile=300), lab.prepare(nofile=300)
    client.ask("ramp", "ramped")
    for agent in (server, client):
        workers = agent.workers()
        assert workers
        agent.process.kill()
        agent.process.wait()
        assert until(lambda pids=workers: not [pid for pid in pids if running(pid)])
    for host in ("server", "client"):
        assert until(lambda h=host: lab.count(h, "established") == 0)


def test_killed_agent_leaves_no_worker_that_is_busy(lab):
    """Who waits for a silent target hears no order, so neither the end of them."""
    lab.serve()
    client = lab.prepare(blocks=[block(20)], retries=0, connect_timeout_ms=120_000)
    lab.net.run("server", "nft", "add", "table", "inet", "t")
    try:
        lab.net.run("server", "nft", "add chain inet t i { type filter hook input priority 0; }")
        lab.net.run("server", "nft", *f"add rule inet t i tcp dport {PORT} drop".split())
        client.send("ramp")
        assert until(lambda: client.ticks and client.ticks[-1]["in_flight"] == 20)
        workers = client.workers()
        client.process.kill()
        client.process.wait()
        assert until(lambda: not [pid for pid in workers if running(pid)])
    finally:
        lab.net.run("server", "nft", "delete", "table", "inet", "t")


def test_workers_are_killed_first_where_memory_runs_out(lab):
    """A worker's sockets hardly show in its size: it says itself that it is worth it."""
    server = lab.serve(nofile=300)
    workers = server.workers()
    assert workers
    for pid in workers:
        assert until(lambda pid=pid: Path(f"/proc/{pid}/oom_score_adj").read_text() == "900\n")
    assert Path(f"/proc/{server.process.pid}/oom_score_adj").read_text() != "900\n"


def test_killed_worker_is_reported(lab):
    server, client = lab.serve(nofile=300), lab.prepare(nofile=300)
    client.ask("ramp", "ramped")
    # What is still in the accept queue would be counted after the worker's death.
    assert until(lambda: server.ask("status", "status")["held"] == 2000)
    victim = server.workers()[0]
    os.kill(victim, signal.SIGKILL)
    fault = server.hear("error")
    assert fault["kind"] == "fault"
    assert f"(pid {victim}) died: signal 9" in fault["message"]
    left = server.ask("status", "status")["held"]
    assert 0 < left < 2000
    assert until(lambda: client.ask("verify", "verified")["alive"] == left)


def test_what_a_killed_client_worker_held_is_held_no_more(lab):
    lab.serve(nofile=300)
    client = lab.prepare(nofile=300)
    client.ask("ramp", "ramped")
    os.kill(client.workers()[0], signal.SIGKILL)
    assert client.hear("error")["kind"] == "fault"
    held = client.ask("status", "status")["held"]
    assert 0 < held < 2000
    assert until(lambda: lab.count("client", "established") == held)
    assert until(lambda: client.ticks[-1]["held"] == held)


def test_stopped_worker_is_reported_and_killed(lab):
    """SIGSTOP: it would keep all that wait for it waiting, to the end of their patience."""
    lab.serve(nofile=300)
    client = lab.prepare(nofile=300, connect_rate=500)
    client.send("ramp")
    assert until(lambda: client.ticks and client.ticks[-1]["held"])
    victim = client.workers()[0]
    os.kill(victim, signal.SIGSTOP)
    fault = client.hear("error")
    assert fault["kind"] == "fault"
    assert f"(pid {victim}) was stopped: signal 19" in fault["message"]
    assert until(lambda: not running(victim))
    assert client.hear("ramped")["held"] < 2000


def test_worker_killed_in_the_ramp_does_not_stall_it(lab):
    lab.serve()
    client = lab.prepare(nofile=300, connect_rate=500)
    client.send("ramp")
    assert until(lambda: client.ticks and client.ticks[-1]["held"])
    os.kill(client.workers()[2], signal.SIGKILL)
    assert client.hear("error")["kind"] == "fault"
    assert client.hear("ramped")["held"] < 2000


def test_too_few_open_files_is_counted_and_does_not_spin(lab):
    """A limit that drops under the agent: errors are counted and bounded."""
    lab.serve()
    client = lab.prepare(blocks=[block(200)], retries=1, backoff_ms=5)
    for pid in client.workers():
        subprocess.run(["prlimit", f"--pid={pid}", "--nofile=40:40"], check=True)
    ramped = client.ask("ramp", "ramped")
    assert ramped["reason"] == "lost"
    assert ramped["held"] + ramped["lost"] == 200
    assert ramped["errors"] == {"EMFILE": 2 * ramped["lost"]}


def test_old_python_is_told(packed, tmp_path):
    pyz = tmp_path / "agent.pyz"
    pyz.write_bytes(packed)
    code = "import runpy, sys; sys.version_info = (3, 8, 0); runpy.run_path(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(pyz)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    error = json.loads(done.stdout)
    assert (error["event"], error["kind"]) == ("error", "input")
    assert error["message"] == "python3 is 3.8, 3.9 or newer is needed"
