"""Frames that ask for addresses, frames that answer, and what the module makes of answers."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tune_loader import load

load("lab_common", "module_utils", "connlab_record")
load("lab_common", "module_utils", "connlab_ip")
neighbours = load("alias_ips", "module_utils", "connlab_neighbours")
module = load("alias_ips", "library", "connlab_alias_probe")

OWN = bytes.fromhex("ee1d4f4ae0c4")
OTHER = bytes.fromhex("2606d057464a")

# Captured from Linux 6.18, by packet(7), on a macvlan interface.
ARP_REPLY = bytes.fromhex(
    "ee1d4f4ae0c42606d057464a080600010800060400022606d057464ac6120107ee1d4f4ae0c400000000"
)
ADVERTISEMENT = bytes.fromhex(
    "3333000000012606d057464a86dd6000000000203afffd630000000000000000000000000007ff02000000000000"
    "000000000000000188001f2220000000fd63000000000000000000000000000702012606d057464a"
)


def test_an_arp_probe_is_a_broadcast_of_no_sender() -> None:
    frame = neighbours.arp_probe(OWN, "198.18.1.7")
    assert frame.hex() == (
        "ffffffffffff" "ee1d4f4ae0c4" "0806"
        "0001" "0800" "06" "04" "0001" "ee1d4f4ae0c4" "00000000" "000000000000" "c6120107"
        + "00" * 18
    )  # fmt: skip


def test_a_solicitation_goes_to_the_solicited_nodes_group_and_is_of_no_source() -> None:
    frame = neighbours.solicitation(OWN, "fd63:6f6e:6e6c::ab:cdef")
    assert frame[:14].hex() == "3333ffabcdef" "ee1d4f4ae0c4" "86dd"  # fmt: skip
    head, body = frame[14:54], frame[54:78]
    assert head[:8].hex() == "60000000" "0018" "3a" "ff"  # fmt: skip
    assert head[8:24] == bytes(16)
    assert ipaddress.IPv6Address(head[24:40]) == ipaddress.IPv6Address("ff02::1:ffab:cdef")
    assert body[:2].hex() == "8700"
    assert ipaddress.IPv6Address(body[8:]) == ipaddress.IPv6Address("fd63:6f6e:6e6c::ab:cdef")
    pseudo = head[8:40] + (24).to_bytes(4, "big") + (58).to_bytes(4, "big")
    assert neighbours.checksum(pseudo + body) == 0


def test_what_a_host_answers_names_its_address_and_its_mac() -> None:
    assert neighbours.claim(ARP_REPLY) == ("198.18.1.7", OTHER)
    assert neighbours.claim(ADVERTISEMENT) == ("fd63::7", OTHER)


@given(st.ip_addresses())
def test_a_probe_of_another_host_claims_the_address(address: Any) -> None:
    build = neighbours.arp_probe if address.version == 4 else neighbours.solicitation
    frame = build(OTHER, str(address))
    assert len(frame) >= 60
    assert neighbours.claim(frame) == (str(address), OTHER)


@given(st.ip_addresses(v=6))
def test_every_solicitation_has_its_checksum(address: Any) -> None:
    frame = neighbours.solicitation(OTHER, str(address))
    pseudo = frame[22:54] + (24).to_bytes(4, "big") + (58).to_bytes(4, "big")
    assert neighbours.checksum(pseudo + frame[54:78]) == 0


@given(st.sampled_from([ARP_REPLY, ADVERTISEMENT]), st.data())
def test_a_frame_cut_short_or_garbled_is_an_address_or_nothing(frame: bytes, data: Any) -> None:
    cut = bytearray(frame[: data.draw(st.integers(0, len(frame)))])
    for place in data.draw(st.lists(st.integers(0, len(frame) - 1), max_size=4)):
        if place < len(cut):
            cut[place] = data.draw(st.integers(0, 255))
    claimed = neighbours.claim(bytes(cut))
    assert claimed is None or ipaddress.ip_address(claimed[0])


@given(st.binary(max_size=100))
def test_any_frame_is_an_address_or_nothing(frame: bytes) -> None:
    assert neighbours.claim(frame) is None or len(frame) >= 42


def changed(frame: bytes, place: int, value: int) -> bytes:
    return frame[:place] + bytes([value]) + frame[place + 1 :]


@pytest.mark.parametrize(
    "frame",
    [
        ARP_REPLY[:41],
        changed(ARP_REPLY, 15, 6),  # another kind of hardware
        changed(ARP_REPLY, 16, 9),  # another protocol
        changed(ARP_REPLY, 18, 8),  # longer hardware addresses
        changed(ARP_REPLY, 21, 3),  # reverse ARP (RFC 903)
        ARP_REPLY[:28] + bytes(4) + ARP_REPLY[32:],  # a reply of no sender
        ADVERTISEMENT[:77],
        changed(ADVERTISEMENT, 14, 0x40),  # IPv4
        changed(ADVERTISEMENT, 20, 17),  # UDP
        changed(ADVERTISEMENT, 21, 254),  # it has come through a router
        changed(ADVERTISEMENT, 54, 135),  # a known host asks for a neighbour
        changed(ADVERTISEMENT, 54, 128),  # an echo request
        changed(ADVERTISEMENT, 55, 1),  # an unknown code
        b"",
    ],
)
def test_what_claims_no_address(frame: bytes) -> None:
    assert neighbours.claim(frame) is None


def test_who_asks_for_another_address_has_its_own() -> None:
    request = changed(ARP_REPLY, 21, 1)
    assert neighbours.claim(request) == ("198.18.1.7", OTHER)


class Wire:
    """A network on which some addresses are taken; the nth frame to each is answered."""

    def __init__(self, taken: dict[str, bytes], after: int = 1) -> None:
        self.taken, self.after = taken, after
        self.sent: dict[str, int] = {}
        self.waiting: list[bytes] = []
        self.waited = 0.0
        self.closed = False

    def send(self, frame: bytes) -> None:
        address, _ = neighbours.claim(frame)
        self.sent[address] = self.sent.get(address, 0) + 1
        if address in self.taken and self.sent[address] == self.after:
            build = neighbours.arp_probe if ":" not in address else neighbours.solicitation
            self.waiting.append(build(self.taken[address], address))

    def heard(self, seconds: float) -> Iterator[bytes]:
        self.waited += seconds
        while self.waiting:
            yield self.waiting.pop()

    def close(self) -> None:
        self.closed = True


LINK = neighbours.Link("data0", 0x1043, 1, OWN)
MANY = [*(f"198.18.1.{byte}" for byte in range(1, 65)), *(f"fd63::{n:x}" for n in range(1, 65))]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "own_macs", lambda: {OWN, b"\x02" * 6})


@pytest.mark.usefixtures("own")
def test_many_addresses_are_asked_for_together() -> None:
    wire = Wire({"198.18.1.7": OTHER, "fd63::9": OTHER})
    answers = neighbours.taken(LINK, MANY, wire)
    assert answers == {"198.18.1.7": "26:06:d0:57:46:4a", "fd63::9": "26:06:d0:57:46:4a"}
    assert set(wire.sent) == set(MANY) and set(wire.sent.values()) == {neighbours.PROBES}
    assert 0.9 < wire.waited < 1.2
    assert wire.closed


@pytest.mark.usefixtures("own")
def test_an_answer_to_the_last_probe_counts() -> None:
    wire = Wire({"198.18.1.7": OTHER}, after=neighbours.PROBES)
    assert list(neighbours.taken(LINK, MANY, wire)) == ["198.18.1.7"]


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("mac", [OWN, b"\x02" * 6])
def test_an_answer_of_this_hosts_own_interfaces_is_none(mac: bytes) -> None:
    assert neighbours.taken(LINK, ["198.18.1.7"], Wire({"198.18.1.7": mac})) == {}


@pytest.mark.usefixtures("own")
def test_who_has_all_addresses_is_not_asked_again() -> None:
    wire = Wire(dict.fromkeys(MANY[:2], OTHER))
    assert len(neighbours.taken(LINK, MANY[:2], wire)) == 2
    assert wire.sent == dict.fromkeys(MANY[:2], 1)


@pytest.mark.usefixtures("own")
def test_a_whole_prefix_is_asked_for_at_a_pace() -> None:
    wire = Wire({})
    addresses = [str(each) for each in ipaddress.ip_network("198.18.0.0/20").hosts()]
    neighbours.taken(LINK, addresses, wire)
    probes = neighbours.PROBES * len(addresses)
    assert sum(wire.sent.values()) == probes
    assert wire.waited >= probes / neighbours.PACE


def test_addresses_of_one_spelling_are_asked_for_once(own: None) -> None:
    wire = Wire({})
    neighbours.taken(LINK, ["fd63::1", "FD63:0::1"], wire)
    assert wire.sent == {"fd63::1": neighbours.PROBES}


def test_without_addresses_nothing_is_opened() -> None:
    before = time.monotonic()
    assert neighbours.taken(neighbours.Link("none", 0, 1, OWN), []) == {}
    assert time.monotonic() - before < 0.1


class Ip:
    """ip(8) of a host with two interfaces."""

    def __init__(self) -> None:
        self.local: dict[str, list[str]] = {"198.19.0.0/29": ["lo"]}

    def json(self, *words: str) -> list[dict[str, Any]]:
        assert words == ("addr", "show")
        return [
            {"ifname": "data0", "addr_info": [{"local": "198.18.1.1"}, {"local": "198.19.4.1"}]},
            {"ifname": "other0", "addr_info": [{"local": "fd63::1"}, {}]},
        ]

    def routes(self) -> dict[str, list[str]]:
        return self.local


def test_what_the_host_has_is_not_asked_for() -> None:
    wanted = ["198.18.1.1", "198.18.1.2", "fd63::1", "fd63::2"]
    found = module.candidates(Ip(), wanted, ["198.19.0.0/29", "198.19.4.0/30"])
    assert found == ["198.18.1.2", "fd63::2", "198.19.4.2"]


def test_of_a_large_prefix_the_first_are_asked_for() -> None:
    found = module.candidates(Ip(), [], ["10.0.0.0/8"])
    assert (found[0], found[-1], len(found)) == ("10.0.0.1", "10.1.0.0", 65_536)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module's work, on a given interface and with given answers."""

    def run(
        interface: Any = LINK, answers: dict[str, str] | None = None, **given: Any
    ) -> dict[str, Any]:
        monkeypatch.setattr(module, "link", lambda _: interface)
        monkeypatch.setattr(module, "taken", lambda *_: answers or {})
        usual = {"host": "client1", "interface": "data0", "addresses": [], "routes": []}
        done: dict[str, Any] = module.probe({**usual, **given}, Ip())
        return done

    return run


def test_addresses_that_nobody_answers_for_are_free(probe: Any) -> None:
    done = probe(addresses=["198.18.1.1", "198.18.1.2"])
    wanted = {"interface": "data0", "addresses": ["198.18.1.1", "198.18.1.2"], "routes": []}
    assert done == {"changed": False, "asked": 1, "unasked": "", "wanted": wanted}


def test_an_address_that_is_taken_is_one_line(probe: Any) -> None:
    with pytest.raises(ValueError, match="taken") as refused:
        probe(answers={"198.18.1.7": "52:54:00:12:34:56"}, addresses=["198.18.1.7"])
    assert str(refused.value) == (
        "host client1: alias_ips: 198.18.1.7 is taken: 52:54:00:12:34:56 answers for it on data0"
    )


def test_of_many_that_are_taken_three_are_named(probe: Any) -> None:
    answers = {f"198.18.1.{byte}": "02:00:00:00:00:01" for byte in range(2, 8)}
    with pytest.raises(ValueError, match=r"198\.18\.1\.4 is .* on data0, and 3 more$") as refused:
        probe(answers=answers, addresses=list(answers))
    assert "198.18.1.5" not in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "why"), [(0x49, "a loopback interface"), (0xC3, "an interface without ARP")]
)
def test_on_an_interface_without_arp_there_is_nobody_to_ask(
    probe: Any, flags: int, why: str
) -> None:
    taken = {"198.18.1.7": "52:54:00:12:34:56"}
    done = probe(LINK._replace(flags=flags), taken, addresses=["198.18.1.7"])
    assert (done["asked"], done["unasked"]) == (0, f"data0 is {why}: no host to ask")


@pytest.mark.parametrize("flags", [0x1002, 0x1003, 0x1040])
def test_an_interface_without_a_link_is_refused(probe: Any, flags: int) -> None:
    with pytest.raises(ValueError, match=r"^host client1: .*data0 has no link, expected one"):
        probe(LINK._replace(flags=flags), addresses=["198.18.1.7"])
    assert probe(LINK._replace(flags=flags), addresses=["198.18.1.1"])["asked"] == 0


def test_an_interface_of_other_hardware_is_refused(probe: Any) -> None:
    with pytest.raises(ValueError, match=r"data0 is hardware of type 32, expected Ethernet"):
        probe(LINK._replace(kind=32), addresses=["198.18.1.7"])


@pytest.mark.parametrize("name", ["none0", "x" * 15, "lo" + "x" * 30])
def test_an_interface_that_there_is_not_is_an_error(name: str) -> None:
    with pytest.raises(OSError, match=r"no interface with this name|No such device"):
        neighbours.link(name)


def test_loopback_is_read_as_the_kernel_has_it() -> None:
    found = neighbours.link("lo")
    assert (found.kind, found.mac) == (772, bytes(6))
    assert found.flags & neighbours.IFF_LOOPBACK and bytes(6) not in neighbours.own_macs()
