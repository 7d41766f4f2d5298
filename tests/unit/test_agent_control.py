"""Which pairs of source and target are proven where there are too many to try each."""

import pytest

from bench.agent import control


def blocks(sources, targets):
    return [
        {"source": source, "target": target, "target_port": 5000, "first_port": 1, "count": 1}
        for source in sources
        for target in targets
    ]


SOURCES = [f"198.18.1.{number}" for number in range(1, 8)]
TARGETS = [f"198.18.0.{number}" for number in range(1, 6)]


def test_each_pair_is_tried_once_up_to_the_bound(monkeypatch):
    monkeypatch.setattr(control, "MOST_PAIRS", len(SOURCES) * len(TARGETS))
    found = control._pairs(2 * blocks(SOURCES, TARGETS))
    assert len(found) == len(set(found)) == control.MOST_PAIRS


@pytest.mark.parametrize(("sources", "targets"), [(SOURCES, TARGETS), (TARGETS, SOURCES)])
def test_beyond_it_each_target_and_each_source_is_tried(monkeypatch, sources, targets):
    monkeypatch.setattr(control, "MOST_PAIRS", len(sources) * len(targets) - 1)
    found = control._pairs(blocks(sources, targets))
    assert {source for source, _ in found} == set(sources)
    assert {address for _, (address, _) in found} == set(targets)
    assert len(found) <= len(sources) + len(targets)


def test_a_control_port_is_asked_from_an_address_of_its_own_version():
    spec = {
        "blocks": [*blocks(["198.18.1.1"], ["198.18.0.1"]), *blocks(["fd00::1"], ["fd00::2"])],
        "controls": [("198.18.0.1", 5999), ("fd00::2", 5999)],
    }
    assert control._controls(spec) == [
        ("198.18.1.1", ("198.18.0.1", 5999)),
        ("fd00::1", ("fd00::2", 5999)),
    ]
