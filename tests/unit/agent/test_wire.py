import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import wire
from bench.agent import probe

NONCE = "00112233445566778899aabbccddeeff"
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), values))
def test_messages_come_back_as_one_line(message):
    line = wire.encode(message)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert wire.decode(line) == message


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"3", b'"op"', b"\xff\xfe"])
def test_what_is_no_message_is_refused(line):
    with pytest.raises(wire.WireError, match=r"^not a message: b"):
        wire.decode(line)


@given(st.integers(0, 1 << 40))
def test_a_bucket_holds_its_latency_within_a_sixteenth(us):
    bucket = wire.bucket_of(us)
    assert 0 <= bucket < wire.BUCKETS
    if bucket < wire.BUCKETS - 1:
        top = wire.bucket_top(bucket)
        below = wire.bucket_top(bucket - 1) if bucket else -1
        assert below < us <= top
        assert top - us <= us / 16


def test_buckets_follow_each_other_without_a_gap():
    tops = [wire.bucket_top(bucket) for bucket in range(wire.BUCKETS)]
    assert tops == sorted(set(tops))
    for bucket, top in enumerate(tops[:-1]):
        assert (wire.bucket_of(top), wire.bucket_of(top + 1)) == (bucket, bucket + 1)


@given(st.lists(st.integers(0, 1 << 28), min_size=1), st.sampled_from([0.5, 0.9, 0.99, 0.999, 1]))
def test_percentile_is_the_bucket_of_the_ranked_sample(latencies, share):
    histogram = {}
    for us in latencies:
        histogram[wire.bucket_of(us)] = histogram.get(wire.bucket_of(us), 0) + 1
    found = wire.percentile(histogram, share)
    reached = sum(us <= found for us in latencies)
    assert reached >= len(latencies) * share - 1e-6
    short = sum(us < wire.bucket_top(wire.bucket_of(found) - 1) + 1 for us in latencies)
    assert wire.bucket_of(found) == 0 or short < max(1, len(latencies) * share)


def test_percentile_of_nothing_is_zero():
    assert wire.percentile({}, 0.5) == 0


@given(st.binary(min_size=16, max_size=16))
def test_proofs_depend_on_nonce_role_and_challenge(challenge):
    proof = wire.proof(NONCE, "server", challenge)
    assert len(proof) == wire.PROOF_BYTES
    assert proof == wire.proof(NONCE, "server", challenge)
    assert proof != wire.proof(NONCE, "client", challenge)
    assert proof != wire.proof("ff" * 16, "server", challenge)
    assert proof != wire.proof(NONCE, "server", bytes(16) if challenge != bytes(16) else b"1" * 16)


@given(st.integers(0, (1 << 32) - 1), st.integers(0, wire.ECHO_BYTES - 1), st.integers(1, 255))
def test_an_echo_is_answered_only_if_it_is_whole(number, at, flip):
    request = wire.echo_request(NONCE, number)
    assert len(request) == wire.ECHO_BYTES
    reply = wire.echo_reply(NONCE, request)
    assert reply is not None and reply[:4] == request[:4] and reply != request
    spoilt = bytearray(request)
    spoilt[at] ^= flip
    assert wire.echo_reply(NONCE, bytes(spoilt)) is None
    assert wire.echo_reply(NONCE, request[:-1]) is None
    assert wire.echo_reply("ff" * 16, request) is None


def test_lines_are_plain_json():
    assert json.loads(wire.encode({"op": "halt"})) == {"op": "halt"}


def test_the_agent_reads_every_source_that_the_wire_names() -> None:
    assert tuple(probe.SOURCES) == wire.SOURCES
    assert len(set(wire.SOURCES)) == len(wire.SOURCES)
    assert set(wire.SOURCES) > probe.EXTRAS
    assert all(re.fullmatch("[a-z0-9_]+", name) for name in wire.SOURCES)  # they name files
