"""Endpoints as trials are told of them."""

from __future__ import annotations

import re

import pytest

from bench.agent.stage import Misuse
from bench.agent.trials import door


def test_an_endpoint_is_an_address_and_a_port() -> None:
    assert door.endpoint(["fd00::1", 5000]) == ("fd00::1", 5000)
    assert door.endpoints([["198.18.0.1", "80"]]) == [("198.18.0.1", 80)]


def test_a_way_that_is_none_is_named() -> None:
    args = {"control": ["198.18.0.1", 4999], "nonce": "00" * 16, "source": "198.18.1.1"}
    with pytest.raises(Misuse, match=r"^fronts, routers: 'router1' does not appear to be"):
        door.proven({**args, "routers": ["router1"]}, [])
    with pytest.raises(Misuse, match=r"^fronts, routers: 'proxy1' does not appear to be"):
        door.proven({**args, "fronts": [["proxy1", 4999]]}, [])


@pytest.mark.parametrize("said", [None, 7, [], ["198.18.0.1"], ["198.18.0.1", "http"], "ab"])
def test_what_is_none_is_named(said: object) -> None:
    expected = re.escape(f"endpoint: got {said!r}, expected [address, port]")
    with pytest.raises(Misuse, match=expected):
        door.endpoint(said)
