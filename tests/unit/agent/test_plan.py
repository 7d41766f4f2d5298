"""How an agent cuts its share into workers, and what it refuses to do."""

import errno
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.agent import client, server, spec, workers
from bench.plan import tuples

block = st.builds(
    lambda source, first, count, target: {
        "source": f"198.18.1.{source}",
        "first_port": first,
        "count": min(count, 65536 - first),
        "target": "198.18.0.1",
        "target_port": target,
    },
    st.integers(1, 4),
    st.integers(1024, 65535),
    st.integers(1, 500),
    st.integers(5000, 5003),
)


@given(st.lists(block, min_size=1, max_size=8), st.integers(1, 60))
def test_shares_hold_every_connection_once_and_are_even(blocks, count):
    shares = client.shares(blocks, count)
    assert len(shares) == count
    total = sum(entry["count"] for entry in blocks)
    sizes = [sum(piece.size for piece in share) for share in shares]
    assert sum(sizes) == total
    assert max(sizes) - min(sizes) <= 1
    planned = [
        (entry["source"], entry["first_port"] + at, entry["target_port"])
        for entry in blocks
        for at in range(entry["count"])
    ]
    cut = [
        (piece.source, piece.first_port + at, piece.target[1])
        for share in shares
        for piece in share
        for at in range(piece.size)
    ]
    assert cut == planned
    bases = [piece.base + at for share in shares for piece in share for at in range(piece.size)]
    assert bases == list(range(total))


@given(st.integers(0, 1 << 21), st.integers(1, 30000), st.integers(65, 30000))
def test_workers_are_enough_and_not_one_too_many(share, room, files):
    try:
        count = workers.how_many(share, room, files)
    except workers.TooMany as error:
        assert "raise nofile" in str(error)
        assert max(share // room, os.cpu_count()) >= files - workers.RESERVE
        assert workers.how_many(share, room, files, limit=True) == files - workers.RESERVE
        return
    assert count * room >= share
    assert count == os.cpu_count() or (count - 1) * room < share
    assert count == workers.how_many(share, room, files, limit=True)


def test_a_million_under_20000_files_needs_51_servers(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert workers.how_many(1_000_000, workers.capacity(20_000), 20_000) == 51
    assert workers.how_many(500_000, workers.capacity(20_000), 20_000) == 26


def test_a_number_of_workers_is_taken_as_it_is():
    assert workers.how_many(1_000_000, 10, 20_000, wanted=1) == 1
    assert workers.how_many(1, 10, 20_000, wanted=300) == 300
    with pytest.raises(
        workers.TooMany, match=r"^300 workers, but the limit of 200 open files allow"
    ):
        workers.how_many(1, 10, 200, wanted=300)


def test_no_room_at_all_is_said():
    with pytest.raises(workers.TooMany, match="limit of 64"):
        workers.capacity(64)


class FakeLimits:
    """RLIMIT_NOFILE as kernel/sys.c do_prlimit() treats it."""

    def __init__(self, soft, hard, nr_open):
        self.now, self.nr_open = (soft, hard), nr_open

    def set(self, _, wanted):
        if wanted[1] > self.nr_open or wanted[1] > self.now[1]:
            raise ValueError("not allowed to raise maximum limit")
        assert wanted[0] <= wanted[1]
        self.now = wanted


@pytest.mark.parametrize(
    ("soft", "hard", "nr_open", "nofile", "files", "after"),
    [
        (1024, 20_000, 1 << 20, "hard", 20_000, (20_000, 20_000)),
        (1024, 20_000, 1 << 20, "soft", 1024, (1024, 20_000)),
        (1024, 20_000, 20_000, "hard", 20_000, (20_000, 20_000)),
        (1024, 20_000, 5000, "hard", 5000, (5000, 5000)),  # EPERM for anything above
        (1024, 20_000, 512, "hard", 512, (512, 512)),
        (1024, 20_000, 512, "soft", 512, (1024, 20_000)),
    ],
)
def test_descriptors_are_raised_as_far_as_the_kernel_lets_them(
    monkeypatch, soft, hard, nr_open, nofile, files, after
):
    fake = FakeLimits(soft, hard, nr_open)
    monkeypatch.setattr("resource.getrlimit", lambda _: fake.now)
    monkeypatch.setattr("resource.setrlimit", fake.set)
    monkeypatch.setattr(workers, "_nr_open", lambda: nr_open)
    assert workers.open_files(nofile) == files
    assert fake.now == after


def test_the_kernels_own_bound_is_read():
    with open("/proc/sys/fs/nr_open") as file:
        assert workers._nr_open() == int(file.read())


class FakeHost:
    """Lets so many workers be started at a time."""

    def __init__(self, most, code=errno.EAGAIN):
        self.most, self.code, self.asked = most, code, []

    def start(self, count):
        self.asked.append(count)
        if count > self.most:
            raise workers.Shortage("fork", self.code, f"at worker {self.most + 1}", self.most)


@given(st.integers(1, 500), st.integers(0, 500))
def test_a_crew_is_as_large_as_the_host_lets_it_be(count, most):
    host = FakeHost(most)
    if not most:
        with pytest.raises(workers.Shortage, match=r"^fork: EAGAIN at worker 1, pids limit"):
            workers.muster(host.start, count, limit=True)
        return
    refused = workers.muster(host.start, count, limit=True)
    if count <= most:
        assert (host.asked, refused) == ([count], {})
    else:
        assert host.asked == [count, max(1, most - workers.SPARE)]
        assert refused == {errno.EAGAIN: 1}


def test_a_shortage_is_an_error_where_no_limit_is_looked_for():
    host = FakeHost(5)
    with pytest.raises(workers.Shortage, match="fork: EAGAIN at worker 6, pids limit") as caught:
        workers.muster(host.start, 6, limit=False)
    assert host.asked == [6]
    assert (caught.value.errno, caught.value.started) == (errno.EAGAIN, 5)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.EAGAIN, "EAGAIN x, pids limit (cgroup pids.max, RLIMIT_NPROC, kernel.pid_max)"),
        (errno.ENOMEM, "ENOMEM x, memory"),
        (errno.EMFILE, "EMFILE x, nofile"),
        (errno.ENFILE, "ENFILE x, fs.file-max"),
        (errno.ENOSYS, "ENOSYS x, Function not implemented"),
    ],
)
def test_a_shortage_names_the_limit(code, said):
    assert str(workers.Shortage("fork", code, "x")) == f"fork: {said}"


def test_a_thread_that_cannot_be_is_a_shortage():
    class NoThread:
        def start(self):
            raise RuntimeError("can't start new thread")

    with pytest.raises(workers.Shortage, match=r"^clone: EAGAIN for a thread, pids limit"):
        workers.begin(NoThread())


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=12), st.integers(0, 700)
)
def test_the_least_tried_are_raised_first_and_exactly(pairs, upto):
    tried = [min(pair) for pair in pairs]
    most = [max(pair) for pair in pairs]
    goals = client.levels(tried, most, upto)
    assert all(a <= b <= c for a, b, c in zip(tried, goals, most, strict=True))
    assert sum(goals) == max(sum(tried), min(upto, sum(most)))
    raised = [(goal, have) for goal, have in zip(goals, tried, strict=True) if goal > have]
    below = [goal for goal, size in zip(goals, most, strict=True) if goal < size]
    if raised and below:  # nobody was raised above somebody who could have been
        assert max(goal for goal, _ in raised) <= min(below) + 1


def four_tuples(pieces):
    """Source, port and target of every connection, in the order in which they are tried."""
    return [
        (piece.source, piece.first_port + at, piece.target)
        for piece in pieces
        for at in range(piece.size)
    ]


@given(st.lists(block, min_size=1, max_size=6), st.integers(1, 7), st.data())
def test_blocks_take_turns_with_the_tuples_that_they_had(blocks, count, data):
    taken = 1024
    for entry in blocks:  # no four-tuple is in two of them
        entry.update(first_port=taken, target_port=5000 + taken % 4)
        taken += entry["count"]
    share = data.draw(st.sampled_from([one for one in client.shares(blocks, count) if one] or [[]]))
    cut = client.interleaved(share)
    planned = four_tuples(share)
    assert sorted(four_tuples(cut)) == sorted(planned)
    assert len(set(four_tuples(cut))) == len(planned)

    def sizes(pieces):
        found = {}
        for piece in pieces:  # by where the block began that it is from
            key = max(one.first_port for one in share if one.first_port <= piece.first_port)
            found[key] = found.get(key, 0) + piece.size
        return found

    assert all(0 < piece.size <= client.SLICE for piece in cut)
    bases = [piece.base + at for piece in cut for at in range(piece.size)]
    assert bases == [piece.base + at for piece in share for at in range(piece.size)]
    for end in range(len(cut)):
        part = sum(piece.size for piece in cut[:end]) / max(1, sum(sizes(share).values()))
        so_far = sizes(cut[:end])
        for key, size in sizes(share).items():
            assert abs(so_far.get(key, 0) - part * size) <= client.SLICE * len(share)


def planned(connections, sources, servers, ports):
    """A client's blocks: its addresses to servers of one address each."""
    addresses = [f"198.18.1.{number + 1}" for number in range(sources)]
    targets = [(f"198.18.0.{number + 1}", 5000) for number in range(servers)]
    return tuples.plan(connections, {"c": addresses}, targets, 1024, 1023 + ports).blocks["c"]


@given(
    st.integers(1, 4), st.integers(2, 5), st.integers(64, 900), st.integers(1, 6), st.floats(0, 1)
)
def test_a_search_for_a_limit_fills_all_servers_alike(sources, servers, ports, count, part):
    total = sources * servers * ports
    crew = client.shares(planned(total, sources, servers, ports), count)
    orders = [client.ordered({**GOOD, "limit": True}, share) for share in crew]
    tried = [four_tuples(order) for order in orders]
    everything = [one for mine in tried for one in mine]
    assert sorted(everything) == sorted(one for share in crew for one in four_tuples(share))
    assert len(set(everything)) == total
    upto = int(part * total)
    goals = client.levels([0] * count, [len(mine) for mine in tried], upto)
    targets = [one[2] for mine, goal in zip(tried, goals, strict=True) for one in mine[:goal]]
    for number in range(servers):
        mine = targets.count((f"198.18.0.{number + 1}", 5000))
        assert abs(mine - upto / servers) <= 2 * client.SLICE * count


@pytest.mark.parametrize(
    ("limit", "source_ports", "servers", "turns"),
    [
        (False, "plan", 2, False),  # one block after the other is faster
        (True, "plan", 2, True),
        (True, "plan", 1, False),  # one target: its order is all the same
        (False, "kernel", 1, True),
        (True, "kernel", 2, True),
    ],
)
def test_who_takes_turns(limit, source_ports, servers, turns):
    (share,) = client.shares(planned(800, 2, servers, 400), 1)
    order = client.ordered({**GOOD, "limit": limit, "source_ports": source_ports}, share)
    assert (order != share) is turns
    assert order == (client.interleaved(share) if turns else share)


@given(st.integers(50, 1 << 20))
def test_reuseport_workers_keep_five_sigma_of_headroom(room):
    mean = server.usual_share(room)
    assert mean + server.SIGMAS * math.sqrt(mean) <= room
    assert mean + 1 + server.SIGMAS * math.sqrt(mean + 1) > room


GOOD = {
    "nonce": "00" * 16,
    "controls": [["198.18.0.1", 4999]],
    "blocks": [
        {
            "source": "198.18.1.1",
            "first_port": 1024,
            "count": 10,
            "target": "198.18.0.1",
            "target_port": 5000,
        }
    ],
    "max_in_flight": 128,
    "connect_rate": 0,
    "connect_timeout_ms": 1000,
    "retries": 1,
    "backoff_ms": 10,
    "active": 1,
    "memory_floor_kib": 0,
    "nofile": "hard",
    "workers": 0,
    "source_ports": "plan",
    "limit": False,
}


def changed(**fields):
    return {**GOOD, "blocks": [{**GOOD["blocks"][0], **fields}]}


def test_a_good_spec_passes():
    assert spec.client(GOOD)["controls"] == [("198.18.0.1", 4999)]
    assert (spec.client(GOOD)["fronts"], spec.client(GOOD)["routers"]) == ([], [])


def test_addresses_are_kept_in_one_form():
    ends = {"source": "FD63::0002", "target": "fd63:0:0::1"}
    way = {"fronts": [["fd63::0003", 4999]], "routers": ["fd63::0004"]}
    found = spec.client({**changed(**ends), **way})
    assert [found["blocks"][0][key] for key in ("source", "target")] == ["fd63::2", "fd63::1"]
    assert (found["fronts"], found["routers"]) == ([("fd63::3", 4999)], ["fd63::4"])
    twice = [*changed(**ends)["blocks"], *changed(source="fd63::2", target="fd63::1")["blocks"]]
    with pytest.raises(spec.BadSpec, match="planned twice"):
        spec.client({**GOOD, "blocks": twice})


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (None, "spec"),
        ({}, "nonce"),
        ({**GOOD, "nonce": "zz"}, "nonce"),
        ({**GOOD, "controls": []}, "controls"),
        ({**GOOD, "controls": [["host", 1]]}, "host"),
        ({**GOOD, "blocks": [3]}, "blocks"),
        ({**GOOD, "blocks": [{"source": "198.18.1.1"}]}, "target"),
        ({**GOOD, "fronts": [["proxy1", 1]]}, "fronts"),
        ({**GOOD, "routers": ["router1"]}, "routers"),
        ({**GOOD, "max_in_flight": 0}, "max_in_flight"),
        ({**GOOD, "connect_rate": -1}, "connect_rate"),
        ({**GOOD, "connect_rate": float("nan")}, "connect_rate"),
        ({**GOOD, "retries": True}, "retries"),
        ({**GOOD, "active": 1.5}, "active"),
        ({**GOOD, "nofile": "none"}, "nofile"),
        ({**GOOD, "workers": -1}, "workers"),
        ({**GOOD, "workers": None}, "workers"),
        ({**GOOD, "source_ports": "any"}, "source_ports"),
        ({**GOOD, "limit": 1}, "limit"),
        (changed(count=0), "count"),
        (changed(first_port=65530), "count"),
        (changed(source="fd63::1"), "IP versions"),
        (changed(target=None), "target"),
        (changed(target_port=70000), "target_port"),
        ({**GOOD, "blocks": GOOD["blocks"] * 2}, "planned twice"),
    ],
)
def test_bad_specs_name_what_is_wrong(bad, word):
    with pytest.raises(spec.BadSpec, match=word):
        spec.client(bad)


def test_descriptors_that_are_no_connections_come_off_the_room():
    assert workers.capacity(1_000) == 1_000 - 64
    assert workers.capacity(1_000, extra=7) == 1_000 - 64 - 7
    assert workers.capacity(65) == 1
    with pytest.raises(workers.TooMany, match="limit of 66"):
        workers.capacity(66, extra=2)


def test_there_is_a_pipe_for_each_worker_and_not_for_one_more():
    files = 100
    assert workers.how_many(10, 1, files, wanted=36) == 36
    with pytest.raises(workers.TooMany, match=r"^37 workers, but the limit of 100 .* allows 36"):
        workers.how_many(10, 1, files, wanted=37)
    assert workers.how_many(10, 1, files, wanted=37, limit=True) == 36


def test_a_reuseport_worker_is_planned_for_five_sigma_less_than_it_holds():
    assert server.usual_share(19_936) == 19_242
    assert server.usual_share(1) == 1


def test_ports_are_planned_up_to_the_last():
    whole = changed(first_port=1024, count=65_536 - 1024)
    assert spec.client(whole)["blocks"][0]["count"] == 64_512
    with pytest.raises(spec.BadSpec, match=r"^count: 64513 is not a whole number from 1 to 64512"):
        spec.client(changed(first_port=1024, count=64_513))
    side_by_side = [dict(GOOD["blocks"][0], first_port=first, count=10) for first in (1024, 1034)]
    assert spec.client({**GOOD, "blocks": side_by_side})
    side_by_side[1]["first_port"] = 1033
    with pytest.raises(
        spec.BadSpec, match=r"port 1033 to 198\.18\.0\.1 port 5000 is planned twice"
    ):
        spec.client({**GOOD, "blocks": side_by_side})


@pytest.mark.parametrize(("size", "ok"), [(16, True), (15, False), (0, False)])
def test_a_nonce_has_sixteen_bytes(size, ok):
    given = {**GOOD, "nonce": "00" * size}
    if ok:
        assert spec.client(given)["nonce"] == given["nonce"]
        return
    with pytest.raises(spec.BadSpec, match=r"^nonce: needs at least 16 bytes in hex"):
        spec.client(given)
