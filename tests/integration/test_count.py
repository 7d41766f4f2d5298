"""Connections of a real kernel, counted by it: against what was opened and against ss."""

import collections
import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from agents import CLIENT, PORT, until

from bench import wire

SOCKETS = Path(__file__).parent.parent / "data" / "capture" / "sockets.py"
ALL = {"ranges": [[1, 65535]], "side": "local", "states": list(wire.TCP_STATES)}
PORTS, STATES, PEERS = 1, 2, 3


@contextlib.contextmanager
def opened(lab, host):
    """Sockets of many states on a host: the rows of what was opened."""
    process = subprocess.Popen(
        [*lab.net.enter(host), sys.executable, str(SOCKETS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()


@pytest.fixture
def sockets(lab):
    with opened(lab, "server") as rows:
        yield rows


def counted(agent, by="none", **changed):
    found = agent.ask("count", "counted", **{**ALL, "by": by, **changed})
    assert found["seconds"] > 0
    assert by == "none" or found["total"] == sum(found["counts"].values())
    return found


def expected(rows, column):
    return collections.Counter(str(row[column]) for row in rows)


def test_every_state_family_port_and_peer(lab, sockets):
    agent = lab.agent("server")
    states = expected(sockets, STATES)
    assert len(states) == 6
    # The kernel has worked off the last FINs and ACKs a moment after close(2).
    assert until(lambda: counted(agent, "state")["counts"] == states), counted(agent, "state")
    assert counted(agent, "port")["counts"] == expected(sockets, PORTS)
    assert counted(agent, "peer")["counts"] == expected(sockets, PEERS)
    assert counted(agent)["counts"] == {}
    assert counted(agent)["total"] == len(sockets) == lab.sockets("server") - 8  # listeners


@pytest.mark.parametrize("state", ["established", "time-wait", "syn-recv", "closing"])
def test_states_are_those_of_ss(lab, sockets, state):
    agent = lab.agent("server")
    wanted = sum(row[STATES] == state for row in sockets)
    assert until(lambda: counted(agent, states=[state])["total"] == wanted)
    printed = lab.net.run("server", "ss", "-Htn", "state", state)
    assert len(printed.splitlines()) == wanted


@pytest.mark.parametrize(
    "ranges",
    [
        [[7001, 7001]],
        [[7002, 7003]],
        [[1, 7001], [7003, 7004], [20_001, 20_010], [65_535, 65_535]],
        [[7009, 7010]],
        [[7001, 7002], [7002, 7003]],
        [[1, 1000], *([port, port] for port in range(6752, 7007))],
    ],
)
def test_ports_are_dropped_by_the_kernel(lab, sockets, ranges):
    agent = lab.agent("server")
    assert until(lambda: counted(agent)["total"] == len(sockets))
    inside = [row for row in sockets if any(low <= row[PORTS] <= high for low, high in ranges)]
    assert counted(agent, "port", ranges=ranges)["counts"] == expected(inside, PORTS)


def test_what_agents_hold(lab):
    server, client = lab.serve(), lab.prepare()
    assert client.ask("ramp", "ramped")["held"] == 2000
    assert until(lambda: server.ask("status", "status")["held"] == 2000)
    ports = [[PORT, PORT]]
    # The control connection's TIME_WAIT is on another port.
    assert counted(server, "port", ranges=ports)["counts"] == {str(PORT): 2000}
    assert counted(server, "peer", ranges=ports)["counts"] == {CLIENT: 2000}
    there = {"side": "peer", "ranges": ports, "states": ["established"]}
    assert counted(client, "port", **there)["counts"] == {str(PORT): 2000}
    assert counted(server, **there)["total"] == 0
    held = {"states": ["established"], "ranges": [[10_000, 11_999]]}
    assert counted(client, "port", **held)["counts"] == {
        str(port): 1 for port in range(10_000, 12_000)
    }


def test_nonsense_is_refused_and_the_agent_goes_on(lab):
    agent = lab.agent("server")
    agent.send("count", **{**ALL, "ranges": [[9, 1]], "by": "port"})
    refused = agent.hear("error")
    assert refused["kind"] == "input"
    assert refused["message"] == "ranges: 1 is not a whole number from 9 to 65535"
    assert counted(agent)["total"] == 0


def test_no_task_begins_meanwhile(lab):
    agent = lab.agent("server")
    both = {"op": "count", "by": "none", **ALL}, {"op": "serve", "spec": lab.server_spec()}
    agent.process.stdin.write(b"".join(map(wire.encode, both)))  # in one write: read as one
    agent.process.stdin.flush()
    assert agent.hear("error")["message"] == "serve while facts, collect or count is under way"
    assert agent.hear("counted")["total"] == 0
    agent.ask("serve", "serving", spec=lab.server_spec())
