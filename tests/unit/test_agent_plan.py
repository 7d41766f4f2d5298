"""How an agent cuts its share into workers, and what it refuses to do."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.agent import client, server, spec, workers

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


@given(st.integers(0, 1 << 21), st.integers(1, 30000))
def test_workers_are_enough_and_not_one_too_many(share, room):
    most = share + 100
    try:
        count = workers.how_many(share, room)
    except workers.TooMany as error:
        assert "raise nofile" in str(error)
        return
    assert count * room >= min(share, most)
    assert (count - 1) * room < share or count <= 64


def test_a_million_under_20000_files_needs_51_servers(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (20000, 20000))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert workers.how_many(1_000_000, workers.capacity()) == 51
    assert workers.how_many(500_000, workers.capacity()) == 26


def test_no_room_at_all_is_said(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (64, 64))
    with pytest.raises(workers.TooMany, match="hard limit of 64"):
        workers.capacity()


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
}


def changed(**fields):
    return {**GOOD, "blocks": [{**GOOD["blocks"][0], **fields}]}


def test_a_good_spec_passes():
    assert spec.client(GOOD)["controls"] == [("198.18.0.1", 4999)]


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (None, "spec"),
        ({}, "nonce"),
        ({**GOOD, "nonce": "zz"}, "nonce"),
        ({**GOOD, "controls": []}, "controls"),
        ({**GOOD, "controls": [["host", 1]]}, "host"),
        ({**GOOD, "blocks": [3]}, "blocks"),
        ({**GOOD, "max_in_flight": 0}, "max_in_flight"),
        ({**GOOD, "connect_rate": -1}, "connect_rate"),
        ({**GOOD, "connect_rate": float("nan")}, "connect_rate"),
        ({**GOOD, "retries": True}, "retries"),
        ({**GOOD, "active": 1.5}, "active"),
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
