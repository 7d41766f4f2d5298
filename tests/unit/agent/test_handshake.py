"""The handshake's two sides, word by word: what was said once is worth nothing a second time."""

import json
import socket
import struct

import pytest

from bench import wire
from bench.agent import handshake
from bench.agent.handshake import Refused

NONCE = "5a" * 16
HERE, PEER = ["198.18.0.1", 5000], ["198.18.1.1", 40_001]


def described(**changed):
    fields = {"here": HERE, "peer": PEER, "endpoints": [HERE], "fronts": []}
    return json.dumps({**fields, **changed}).encode()


def end_of(script, word):
    """What a side returns after its last word."""
    with pytest.raises(StopIteration) as ended:
        script.send(word)
    return ended.value.value


def talk(description):
    """What both sides say to each other; returns the words of each, and what the client takes."""
    there, here = handshake.server(NONCE, description), handshake.client(NONCE)
    next(there)
    challenge = next(here)[0]
    answer = there.send(challenge)[0]
    proof = here.send(answer)[0]
    last = there.send(proof)[0]
    size, text, tag = last[:4], last[4 : -wire.PROOF_BYTES], last[-wire.PROOF_BYTES :]
    here.send(size)
    here.send(text)
    return (challenge, proof), (answer, size, text, tag), end_of(here, tag)


def test_the_client_learns_both_ends_and_where_the_server_listens():
    end = ("198.18.0.1", 5000)
    assert talk(described())[2] == (end, ("198.18.1.1", 40_001), {end}, frozenset())


def test_what_a_server_said_once_is_refused_the_next_time():
    _, words, _ = talk(described())
    later = handshake.client(NONCE)
    next(later)
    with pytest.raises(Refused, match=r"^wrong proof$"):
        for word in words:
            later.send(word)


def test_what_a_client_said_once_is_refused_the_next_time():
    (challenge, proof), _, _ = talk(described())
    later = handshake.server(NONCE, described())
    next(later)
    later.send(challenge)
    with pytest.raises(Refused, match=r"^wrong proof$"):
        later.send(proof)


@pytest.mark.parametrize("size", [handshake.DESCRIPTION_BYTES + 1, 1 << 31])
def test_a_length_beyond_the_bound_is_refused_before_anything_is_waited_for(size):
    there, here = handshake.server(NONCE, described()), handshake.client(NONCE)
    next(there)
    here.send(there.send(next(here)[0])[0])
    with pytest.raises(Refused, match=r"^bad length$"):
        here.send(struct.pack(">I", size))


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("198.18.0.1", "198.18.0.1"),
        ("fd63:6f6e:6e6c:0:0:0:0:1", "fd63:6f6e:6e6c::1"),
        ("FD63:6F6E:6E6C::0001", "fd63:6f6e:6e6c::1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_addresses_are_compared_as_such(written, plain):
    assert handshake.plain(written) == plain
    said = talk(described(here=[written, 1], peer=[written, 2], fronts=[[written, 3]]))[2]
    assert (said.here, said.peer, said.fronts) == ((plain, 1), (plain, 2), {(plain, 3)})


@pytest.mark.parametrize(
    "changed", [{"here": ["there", 1]}, {"peer": ["198.18.0.1"]}, {"fronts": [["::1", "1"]]}]
)
def test_ends_that_are_none_are_refused(changed):
    with pytest.raises(Refused, match=r"^bad description$"):
        talk(described(**changed))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_server_says_both_ends_of_the_very_connection(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.create_server((address, 0), family=family) as listener,
        socket.create_connection(listener.getsockname()[:2]) as ours,
        listener.accept()[0] as theirs,
    ):
        said = json.loads(handshake.describe(theirs, [("198.18.0.1", 5000)]))
        assert said == {
            "here": list(ours.getpeername()[:2]),
            "peer": list(ours.getsockname()[:2]),
            "endpoints": [["198.18.0.1", 5000]],
            "fronts": [],
        }
