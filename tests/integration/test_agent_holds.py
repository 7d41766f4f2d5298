"""Opening, holding, asking, looking and closing, in every mode."""

import pytest
from agents import CLIENT, CLIENT6, CONTROL, PORT, SERVER, SERVER6, block, until


def ramp(server, client, wanted):
    ramped = client.ask("ramp", "ramped")
    assert (ramped["reason"], ramped["held"], ramped["lost"]) == ("complete", wanted, 0)
    assert sum(ramped["latency"].values()) == wanted
    assert until(lambda: server.ask("status", "status")["held"] == wanted)


def three_counts(server, client, ends):
    ours = client.ask("collect", "collected", phase="peak", count=ends)
    theirs = server.ask("collect", "collected", phase="peak", count=ends)
    return theirs["held"], ours["held"], theirs["established"], ours["established"]


@pytest.mark.parametrize("listener", ["shared", "reuseport"])
@pytest.mark.parametrize("watch", ["epoll", "none"])
def test_exact_number_over_many_workers(lab, listener, watch):
    server = lab.serve(nofile=300, listener=listener, watch=watch)
    client = lab.prepare(nofile=300, active=2)
    assert len(server.workers()) >= 9
    assert len(client.workers()) == 9  # ceil(2000 / (300 - 64))
    ramp(server, client, 2000)
    assert three_counts(server, client, [[SERVER, PORT]]) == (2000,) * 4

    server.ask("answer", "answering", on=True)
    for mode, asked in (("sample", 100), ("all", 2000)):
        echoed = client.ask("echo", "echoed", mode=mode, sample=100)
        assert (echoed["asked"], echoed["answered"], echoed["wrong"]) == (asked, asked, 0)
    answering = server.ask("answer", "answering", on=False)
    assert (answering["echoes"], answering["wrong"]) == (2100, 0)

    for agent in (server, client):
        verified = agent.ask("verify", "verified")
        assert (verified["alive"], verified["dead"]) == (2000, 0)

    assert client.ask("drain", "drained", how="rst", rate=0)["closed"] == 2000
    server.ask("drain", "drained", how="rst", rate=0)
    assert server.ask("status", "status")["held"] == 0
    assert client.ask("status", "status")["held"] == 0
    for host in ("server", "client"):
        for state in ("established", "time-wait", "close-wait", "fin-wait-1", "fin-wait-2"):
            assert lab.count(host, state) == 0, (host, state)


def test_several_endpoints_and_both_ip_versions(lab):
    ends = [[SERVER, PORT], ["198.18.0.2", PORT + 1], [SERVER6, PORT + 2]]
    server = lab.serve(endpoints=ends)
    blocks = [
        block(300),
        block(300, target="198.18.0.2", target_port=PORT + 1),  # the same source ports again
        block(300, source="198.18.1.2", first_port=20000),
        block(400, source=CLIENT6, target=SERVER6, target_port=PORT + 2),
    ]
    client = lab.prepare(blocks=blocks)
    ramp(server, client, 1300)
    assert three_counts(server, client, ends) == (1300,) * 4
    server.ask("answer", "answering", on=True)
    assert client.ask("echo", "echoed", mode="all")["answered"] == 1300


def test_a_single_connection(lab):
    server, client = lab.serve(connections=1), lab.prepare(blocks=[block(1)])
    ramp(server, client, 1)
    server.ask("answer", "answering", on=True)
    assert client.ask("echo", "echoed", mode="all")["answered"] == 1
    assert client.ask("drain", "drained", how="rst", rate=0)["closed"] == 1


def test_control_port_over_ipv6(lab):
    lab.serve(endpoints=[[SERVER6, PORT]], control=[SERVER6, CONTROL])
    blocks = [block(50, source=CLIENT6, target=SERVER6)]
    client = lab.prepare(blocks=blocks, controls=[[SERVER6, CONTROL]])
    assert client.ask("ramp", "ramped")["held"] == 50


def test_fin_drain_closes_both_ends(lab):
    server, client = lab.serve(), lab.prepare(blocks=[block(200, first_port=30000)])
    ramp(server, client, 200)
    assert client.ask("drain", "drained", how="fin", rate=0)["closed"] == 200
    assert until(lambda: server.ask("status", "status")["held"] == 0)
    # The side that closes first waits, each of its connections. A RST for a late segment ends a
    # TIME_WAIT early where net.ipv4.tcp_rfc1337 is 0 (RFC 1337), so what is missing was reset.
    assert until(lambda: lab.counter("client", "TcpExtTW") == 200)
    assert until(
        lambda: (
            lab.count("client", "time-wait") + lab.counter("server", "TcpOutRsts")
            == lab.sockets("client") + lab.counter("server", "TcpOutRsts")
            == 200
        )
    )
    assert lab.count("server", "time-wait") == 0


def test_one_source_port_serves_two_targets(lab):
    ports = (PORT, PORT + 1)
    server = lab.serve(endpoints=[[SERVER, port] for port in ports])
    blocks = [block(300, target_port=port) for port in ports]
    client = lab.prepare(blocks=blocks, nofile=220)  # so that each target has workers of its own
    ramp(server, client, 600)
    assert [lab.count("server", "established", port) for port in ports] == [300, 300]


def test_sources_in_time_wait_serve_again(lab):
    server = lab.serve()
    first = lab.prepare(blocks=[block(300)], opens=False)
    for client in (first, lab.prepare(blocks=[block(300)])):
        ramp(server, client, 300)
        assert client.ask("drain", "drained", how="fin", rate=0)["closed"] == 300
        assert until(lambda: server.ask("status", "status")["held"] == 0)
    assert lab.counter("client", "TcpExtTW") > 300


def test_drain_is_paced(lab):
    server, client = lab.serve(), lab.prepare(blocks=[block(400)])
    ramp(server, client, 400)
    drained = client.ask("drain", "drained", how="rst", rate=400)
    assert drained["closed"] == 400
    # However slow the machine is, a token bucket of 400/s cannot close 400 in less than this.
    assert drained["seconds"] >= 0.9


def test_verify_finds_what_the_peer_has_closed(lab):
    server, client = lab.serve(watch="none"), lab.prepare(blocks=[block(300)])
    ramp(server, client, 300)
    lab.net.run("client", "ss", "-K", "dst", SERVER, "sport", "<=", ":10049")
    gone = 300 - lab.count("server", "established")
    assert gone == 50
    verified = server.ask("verify", "verified")
    assert (verified["alive"], verified["dead"]) == (250, 50)
    verified = client.ask("verify", "verified")
    assert (verified["alive"], verified["dead"]) == (250, 50)
    assert client.ask("status", "status")["held"] == 250


def test_evidence_and_facts(lab):
    client = lab.agent("client", nofile=5000)
    facts = client.ask("facts", "facts", sysctls=["net.core.somaxconn", "net.no.such_key"])
    assert facts["sysctl"] == {"net.core.somaxconn": "65535"}
    assert (facts["nofile_soft"], facts["nofile_hard"]) == (5000, 5000)
    assert {CLIENT, CLIENT6} <= set(facts["addresses"])
    assert facts["ehash_entries"] > 0
    lab.serve()
    client.ask("prepare", "prepared", spec=lab.client_spec())
    found = client.ask("collect", "collected", phase="before", count=None)
    wanted = {"ss_s", "sockstat", "sockstat6", "meminfo", "slabinfo", "nstat", "limits"}
    assert wanted <= set(found["texts"])
    assert (found["missing"], found["established"]) == ({}, None)
    assert found["texts"]["ss_s"].startswith("Total:")
    assert "MemFree:" in found["texts"]["meminfo"]
    assert "TcpExtListenOverflows" in found["texts"]["nstat"]
    assert "Max open files" in found["texts"]["limits"]
    # 12 MB a process at most: this is what a worker costs before its first connection.
    assert 0 < found["pss_kib"] < 12 * 1024 * (found["workers"] + 1)
