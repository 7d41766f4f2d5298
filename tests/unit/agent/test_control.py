"""Which pairs of source and target are proven, and what a server may say of the way to it."""

import pytest

from bench.agent import control
from bench.agent.handshake import Description


def blocks(sources, targets):
    return [
        {"source": source, "target": target, "target_port": 5000, "first_port": 1, "count": 1}
        for source in sources
        for target in targets
    ]


def test_every_pair_is_proven_once_however_many_there_are():
    sources = [f"198.18.1.{number}" for number in range(1, 66)]
    targets = [f"198.18.0.{number}" for number in range(1, 65)]
    found = control._pairs(2 * blocks(sources, targets))
    assert len(found) == len(set(found)) == 65 * 64


OWN, OTHER = ("198.18.1.1", 40_001), ("198.18.9.9", 4711)
TARGET, ELSEWHERE = ("198.18.0.1", 5000), ("198.18.0.1", 5001)
SIX, SIX_OWN = ("fd63::1", 5000), ("fd63::2", 40_001)
FRONTED = control.way([TARGET], [])
ROUTED = control.way([], ["198.18.201.1", "198.18.9.9"])
IN_BETWEEN = (
    "198.18.0.1 port 5000 is reached through a relay: it sees 198.18.9.9 port 4711, this is "
    "198.18.1.1 port 40001"
)


@pytest.mark.parametrize(
    ("target", "own", "here", "peer", "between", "wrong"),
    [
        (TARGET, OWN, TARGET, OWN, control.DIRECT, ""),
        (TARGET, OWN, TARGET, OTHER, control.DIRECT, IN_BETWEEN),
        (TARGET, OWN, TARGET, (OWN[0], 40_002), control.DIRECT, "a relay"),
        (TARGET, OWN, ELSEWHERE, OWN, control.DIRECT, "198.18.0.1 port 5000 leads to 198.18.0.1"),
        (TARGET, OWN, ELSEWHERE, OTHER, FRONTED, ""),
        (ELSEWHERE, OWN, ELSEWHERE, OTHER, FRONTED, "port 5001 is reached through a relay"),
        (TARGET, OWN, TARGET, OTHER, ROUTED, ""),
        (TARGET, OWN, TARGET, OWN, ROUTED, ""),
        (TARGET, OWN, ELSEWHERE, OTHER, ROUTED, "leads to"),
        (TARGET, OWN, TARGET, ("198.18.9.8", 4711), ROUTED, "a relay: it sees 198.18.9.8"),
        (SIX, SIX_OWN, SIX, SIX_OWN, control.DIRECT, ""),
        (("fd63:0::1", 5000), ("fd63::0002", 40_001), SIX, SIX_OWN, control.DIRECT, ""),
        (SIX, ("fd63::2%data0", 40_001), SIX, SIX_OWN, control.DIRECT, ""),
    ],
)
def test_who_is_in_between_is_noticed(target, own, here, peer, between, wrong):
    said = Description(here, peer, frozenset(), frozenset())
    found = control._astray(control._Try("198.18.1.1", target, own), said, between)
    assert (wrong in found) is True
    assert bool(found) is bool(wrong)


def test_a_control_port_is_asked_from_an_address_of_its_own_version():
    spec = {
        "blocks": [*blocks(["198.18.1.1"], ["198.18.0.1"]), *blocks(["fd00::1"], ["fd00::2"])],
        "controls": [("198.18.0.1", 5999), ("fd00::2", 5999)],
    }
    assert control._controls(spec) == [
        ("198.18.1.1", ("198.18.0.1", 5999)),
        ("fd00::1", ("fd00::2", 5999)),
    ]


def test_nothing_is_waited_for_when_all_have_been_proven(monkeypatch):
    def described(key):
        return Description(key.target, key.own, frozenset(), frozenset())

    class Talks:
        def __init__(self):
            self.keys = []

        def __len__(self):
            return len(self.keys)

        def begin(self, link, script, key):
            link.close()
            self.keys.append(key)

        def turn(self, seconds):
            assert self.keys, "waits for nobody"
            keys, self.keys = self.keys, []
            return [control.handshake.Ended(key, described(key), None) for key in keys], []

        def close(self):
            pass

    monkeypatch.setattr(control.handshake, "Talks", Talks)
    pairs = [("127.0.0.1", ("127.0.0.1", port)) for port in (5001, 5002)]
    assert set(control.introductions([*pairs, ("127.0.0.2", pairs[0][1])], "00" * 16)) == {
        *pairs,
        ("127.0.0.2", pairs[0][1]),
    }
