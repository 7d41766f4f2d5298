"""Which pairs of source and target are proven."""

from bench.agent import control


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


def test_a_control_port_is_asked_from_an_address_of_its_own_version():
    spec = {
        "blocks": [*blocks(["198.18.1.1"], ["198.18.0.1"]), *blocks(["fd00::1"], ["fd00::2"])],
        "controls": [("198.18.0.1", 5999), ("fd00::2", 5999)],
    }
    assert control._controls(spec) == [
        ("198.18.1.1", ("198.18.0.1", 5999)),
        ("fd00::1", ("fd00::2", 5999)),
    ]
