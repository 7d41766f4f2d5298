from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.agent.trials.look import listening
from bench.claims.lab import NotMeasurable
from bench.claims.statements.reverse_proxy import (
    CLAIM,
    HEADED,
    PLAIN,
    TRANSPARENT,
    ProxyFound,
    _ipv4,
    _seen,
    judge,
)
from bench.hosts.told import Told


def found(**fields: Any) -> ProxyFound:
    usual: dict[str, Any] = {
        "ports": 500,
        "sources": 2,
        "one_proxy": 1_000,
        "tried": 1_040,
        "held": 4_000,
        "asked": 4_000,
        "per_proxy": {"proxy1": 2_000, "proxy2": 2_000},
        "haproxy_bytes": 1_234.0,
        "kernel_bytes": 15_000.0,
        "plain_sees_client": False,
        "header_names_client": True,
        "transparent_sees_client": True,
    }
    return ProxyFound(**{**usual, **fields})


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({}, "depends"),
        ({"header_names_client": False}, "confirmed"),
        ({"one_proxy": 1_040}, "inconclusive"),
        ({"one_proxy": 998}, "inconclusive"),
        ({"held": 3_999}, "inconclusive"),
        ({"transparent_sees_client": None}, "depends"),
        ({"plain_sees_client": None, "header_names_client": None}, "inconclusive"),
        ({"plain_sees_client": None}, "inconclusive"),
        ({"header_names_client": None}, "inconclusive"),
        ({"plain_sees_client": True}, "inconclusive"),
        ({"plain_sees_client": True, "header_names_client": False}, "inconclusive"),
        ({"header_names_client": False, "transparent_sees_client": False}, "inconclusive"),
        ({"header_names_client": False, "transparent_sees_client": None}, "inconclusive"),
        ({"per_proxy": {"proxy1": 4_000}}, "inconclusive"),
        ({"per_proxy": {"proxy1": 4_000, "proxy2": 0}}, "inconclusive"),
        ({"held": 1_000, "asked": 1_000}, "inconclusive"),
    ],
)
def test_ports_and_headers_decide(fields: dict[str, Any], verdict: str) -> None:
    assert judge(found(**fields)).verdict == verdict


def test_one_proxy_alone_is_named_as_the_reason() -> None:
    one = judge(found(per_proxy={"proxy1": 4_000}))
    assert one.reason == "one proxy alone does not show what another adds"


@pytest.mark.parametrize("profile", ["small", "full"])
def test_all_proxies_are_to_hold_more_than_one_can(profile: str) -> None:
    asked = CLAIM.parameters(profile)
    sources = 4  # of a proxy in the lab
    assert asked.connections > sources * (asked.last_port - asked.first_port + 1)


class Trials:
    """Trials whose server saw what it is told."""

    def __init__(self, seen: list[dict[str, Any]]) -> None:
        self.seen = seen

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, host: str, name: str, **args: Any) -> str:
        return host

    def together(self, steps: dict[str, Any]) -> dict[str, Any]:
        return {"server": Told("server", {"seen": self.seen}), "client": Told("client", {})}


CLIENT, PROXY = "198.18.1.1", "198.18.2.1"


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([], (None, None, None)),
        ([{"port": PLAIN, "peer": PROXY, "header": None}], (False, None, None)),
        (
            [
                {"port": PLAIN, "peer": PROXY, "header": None},
                {"port": HEADED, "peer": PROXY, "header": CLIENT},
                {"port": TRANSPARENT, "peer": CLIENT, "header": None},
            ],
            (False, True, True),
        ),
        ([{"port": HEADED, "peer": PROXY, "header": None}], (None, False, None)),
    ],
)
def test_what_did_not_come_about_is_told_apart(
    seen: list[dict[str, Any]], expected: tuple[bool | None, ...]
) -> None:
    lab: Any = SimpleNamespace(server="server", client="client", trials=lambda: Trials(seen))
    assert tuple(_seen(lab, "198.18.0.1", CLIENT, PROXY).values()) == expected


def test_a_host_without_an_ipv4_address_is_named() -> None:
    host: Any = SimpleNamespace(name="client1", data_addresses=("fd63:6f6e:6e6c::2",))
    with pytest.raises(NotMeasurable, match="client1 has no IPv4 address in the inventory"):
        _ipv4(host)


def test_listeners_are_found_in_what_ss_prints() -> None:
    text = (
        "LISTEN 0      4096      198.18.211.1:4999      0.0.0.0:*          \n"
        "LISTEN 0      4096      198.18.211.2:4999      0.0.0.0:*          \n"
        "LISTEN 0      128            0.0.0.0:22        0.0.0.0:*          \n"
        "LISTEN 0      128               [::]:22           [::]:*          \n"
    )
    assert listening(text) == [22, 4999]
