"""Whatever a host prints: a parser reads it or says why not, and what follows goes on."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from answers import FACTS
from captured import KERNELS, collected
from evidence import Found, measured
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as Step
from hypothesis import strategies as st
from model_parts import lab, record

from bench import units
from bench.collect import (
    ParseError,
    cgroups,
    conntrack,
    kernellog,
    limits,
    meminfo,
    nstat,
    slab,
    sockstat,
    ss,
)
from bench.diagnosis import diagnose
from bench.hosts import count, messages
from bench.model import capacity, remarks
from bench.plan.topology import Topology
from bench.results import cost, facts
from bench.results.format import Established, HostRecord, Phase
from bench.run import runner
from bench.run.phases import Evidence
from bench.scenario import Scenario

STARTED = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)

PARSERS: dict[str, Callable[[str], Any]] = {
    "ss_s": ss.parse,
    "sockstat": sockstat.parse,
    "sockstat6": lambda text: sockstat.parse(text, "sockstat6"),
    "meminfo": meminfo.parse,
    "slabinfo": slab.parse,
    "slab_aliases": slab.parse_aliases,
    "nstat": nstat.parse,
    "limits": limits.parse,
    "cgroup": cgroups.parse,
    "conntrack_stat": conntrack.parse,
    "kernel_log": kernellog.telling,
}
MADE_UP = {
    "cgroup": "/a pids.max max\n/a pids.current 7\n/a pids.events max 3\n/ memory.max 99\n",
    "conntrack_stat": "entries drop early_drop\n0000002a 00000001 ff\n0000002a 0 0\n",
    "kernel_log": "[ 1.0] TCP: out of memory -- consider tuning tcp_mem\n[ 2.0] else\n",
}
ODD = (
    *("", " ", "\n", "\t", ":", "-", "--1", "+1", "0", "-1", "1.5", "²", "٣", "1_0", "0x1"),
    *("9" * 21, "9" * 400, "9" * 5_000, str(1 << 64), "f" * 40, "max", "unlimited", "x715"),
    *("\x00", "\x0b", "\x85", "\u2028", "\ud800", "slabinfo - version:", "Slab: 1 kB"),
    *("==> /proc/sys/fs/file-nr <==", "TCP 1 1 8 1 0", "TCP: 5", "Transport", "#"),
)
"""What no kernel prints there."""


def original(name: str, kernel: str, phase: str) -> str:
    return str(collected(kernel, phase)["texts"].get(name) or MADE_UP.get(name, ""))


@st.composite
def changed(draw: st.DrawFn, text: str) -> str:
    """A text with some of its words and lines changed, left out, or there twice."""
    lines = text.splitlines() or [""]
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(lines) - 1))
        words = lines[place].split(" ")
        word = draw(st.integers(0, len(words) - 1))
        odd = draw(st.sampled_from(ODD) | st.text(max_size=8))
        lines[place : place + 1] = draw(
            st.sampled_from(
                [
                    [],
                    [odd],
                    [lines[place]] * 2,
                    [" ".join([*words[:word], odd, *words[word + 1 :]])],
                    [" ".join([*words[:word], *words[word + 1 :]])],
                    [lines[place][: len(lines[place]) // 2]],
                ]
            )
        )
        lines = lines or [""]
    return "\n".join(lines)


@st.composite
def printed(draw: st.DrawFn, name: str, phase: str = "peak") -> str:
    """What a host may print for a source: its own text changed, or anything."""
    text = original(name, draw(st.sampled_from(KERNELS)), phase)
    return draw(changed(text) | st.text() | st.lists(st.sampled_from(ODD)).map(" ".join))


@pytest.mark.parametrize("name", PARSERS)
@given(st.data())
def test_a_text_is_read_or_named(name: str, data: st.DataObject) -> None:
    text = data.draw(printed(name))
    try:
        found = PARSERS[name](text)
    except ParseError as why:
        assert str(why).startswith(name) and len(str(why)) < 1_500
    else:
        json.dumps(found, default=vars)
        if name == "slabinfo":
            assert all(one.bytes_each > 0 for one in found.values())


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("slabinfo", "slabinfo - version:", "slabinfo line 1: .* only version 2.1 is known"),
        ("slabinfo", "TCP 1 1 8 1 0\nTCP 1 1 8 1 0\n", "slabinfo line 1: .* no object fits a slab"),
        ("slabinfo", f"TCP 1 {1 << 63} 8 1 8", "slabinfo line 1: .* more memory than there are"),
        ("meminfo", f"Slab: {'9' * 400} kB", "meminfo line 1: '999.* is not a number below 2"),
        ("meminfo", f"Slab: {1 << 64} kB", "meminfo line 1: .* is not a number below 2"),
        ("meminfo", "Slab: ٣ kB", "meminfo line 1: 'Slab: ٣ kB' is not `Field: count kB`"),
        ("nstat", "TcpMaxConn --1 0.0", "nstat line 1: .* is not `Counter value rate`"),
        ("nstat", "TcpMaxConn ² 0.0", "nstat line 1: "),
        ("sockstat", "TCP: inuse ²", "sockstat line 1: '²' is not a number"),
        ("cgroup", "/ pids.max ²", "cgroup line 1: '²' is not a number"),
        ("conntrack_stat", "entries\n0x1", "conntrack_stat line 2: '0x1' is not hex"),
        ("conntrack_stat", "entries\n" + "f" * 9_999, "conntrack_stat line 2: "),
        ("ss_s", "Total: ²", "ss_s line 1: "),
        ("limits", "==> /proc/sys/fs/file-nr <==\nx715 0 9", "limits line 2: fs.file-nr: 'x715'"),
        ("limits", f"==> /self/limits <==\nMax cpu time   {1 << 64}  1", "limits line 2: "),
    ],
)
def test_what_no_kernel_prints_is_named(name: str, text: str, why: str) -> None:
    with pytest.raises(ParseError, match=f"^{why}"):
        PARSERS[name](text)
    event = collected("6.1", "peak")
    event["texts"][name] = text
    found = facts.phase(event)
    assert found.missing[name].startswith(f"not understood: {name} line ")
    assert found.meminfo_kib or name == "meminfo"  # the others count all the same


@pytest.mark.parametrize("number", ["18446744073709551615", "0", "007"])
def test_the_widest_number_is_read(number: str) -> None:
    assert meminfo.parse(f"Slab: {number} kB") == {"Slab": int(number)}
    assert units.whole(number) == units.signed(number) == int(number)
    assert units.signed(f"-{number}") == -int(number)


@pytest.mark.parametrize("text", ["", "-", "²", "٣", " 1", "1 ", "1\n", "1_0", "+1", "1" * 5_000])
def test_what_is_no_number(text: str) -> None:
    assert units.whole(text) is units.signed(text) is None
    assert count._rank(text) == (0, text)


LONG = 300_000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ss_s", "TCP: 5 " + "a" * LONG),
        ("limits", "==> /proc/self/limits <==\nMax " + " " * LONG),
        ("limits", "==> /proc/self/limits <==\nMax " + "a " * LONG),
        ("kernel_log", "nf_conntrack: " * (LONG // 14)),
        ("slabinfo", "a 1 " * LONG),
        ("slabinfo", "1" * LONG),
        ("meminfo", "a " * LONG),
        ("meminfo", "a:" + " " * LONG),
    ],
)
def test_a_long_line_is_over_soon(name: str, text: str) -> None:
    began = time.monotonic()
    try:
        PARSERS[name](text)
    except ParseError as why:
        assert len(str(why)) < 1_500
    assert time.monotonic() - began < 20


SETTINGS = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Step.explicit, Step.reuse, Step.generate],  # a whole host takes long to be made less
)


@st.composite
def phases(draw: st.DrawFn, kernel: str) -> tuple[dict[str, Phase], dict[str, str]]:
    """A host's phases with odd texts in some of them; and the texts of the first."""
    made, first = {}, {}
    for phase in ("before", "peak"):
        event = collected(kernel, phase)
        for name in draw(st.sets(st.sampled_from(sorted(PARSERS)), max_size=3)):
            event["texts"][name] = draw(printed(name, phase))
        for name in draw(st.sets(st.sampled_from(sorted(PARSERS)), max_size=2)):
            event["texts"].pop(name, None)
        made[phase] = facts.phase(event, STARTED)
        first = first or event["texts"]
    return made, first


SYSCTL = st.sampled_from([*ODD, "x", "32768 60999", "0-65535", "0-99999999999", "1,1,1", "a b c"])


def told(host: HostRecord, data: st.DataObject) -> Mapping[str, str]:
    """The host with odd phases and parameters; its texts of before."""
    host.phases, texts = data.draw(phases("6.1"))
    keys = data.draw(st.sets(st.sampled_from(sorted(messages.SYSCTLS)), max_size=5))
    host.sysctl |= {key: units.printable(data.draw(SYSCTL | st.text(max_size=9))) for key in keys}
    return texts


@SETTINGS
@given(st.data(), st.booleans())
def test_a_run_is_put_together_of_whatever_was_printed(data: st.DataObject, underlay: bool) -> None:
    hosts = {"server1": record("6.1", "servers"), "client1": record("6.1", "clients")}
    texts = {name: told(host, data) for name, host in hosts.items()}
    inventory = lab(underlay)
    scenario = Scenario(name="test", title="test", connections=900, source_ports="kernel")
    predicted = capacity.predict(Topology(scenario, inventory), hosts, texts, 1_000)
    remarks.remarks(scenario, hosts)
    gathered = Evidence(
        hosts=hosts,
        predicted=predicted,
        peak=Established(clients=901, servers=900, ss=899),
        errors={("client", "client1"): {"ETIMEDOUT": 3, "ENOMEM": 1}, ("server", "server1"): {}},
    )
    made = runner._assemble(Topology(scenario, inventory), gathered, [], "run", STARTED, None)
    assert type(made).model_validate_json(made.model_dump_json(by_alias=True)).run_id == "run"


@SETTINGS
@given(st.data())
def test_a_diagnosis_is_made_of_whatever_was_printed(data: st.DataObject) -> None:
    hosts = {"server1": record("6.1", "servers")}
    told(hosts["server1"], data)
    by_side = {"client": {"ETIMEDOUT": 900_000, "ENOBUFS": 2}, "server": {"EMFILE": 5}}
    found = Found(hosts=hosts, by_side=by_side)
    made = diagnose.diagnose(Scenario(name="test", title="test"), measured(), found)
    assert made.bound_by


def test_slab_is_compared_only_where_both_phases_tell_of_it_alike() -> None:
    """One phase with caches alone, the other with their sum alone, say nothing of growth."""
    made = {phase: facts.phase(collected("6.1", phase)) for phase in ("before", "peak")}
    host = record("6.1", "servers", "clients")
    host.phases = {
        "before": made["before"].model_copy(update={"meminfo_kib": {}}),
        "peak": made["peak"].model_copy(update={"slab_bytes": {}, "slab_objects": {}}),
    }
    found = cost.kernel_bytes({"server1": host}, shared_kernel=False)
    assert (found.server, found.by_cache) == (None, {})
    host.phases["before"] = made["before"]
    assert cost.kernel_bytes({"server1": host}, shared_kernel=False).server


def network(text: str) -> Any:
    return ipaddress.ip_network(text, strict=False)


@SETTINGS
@given(st.data())
def test_what_facts_get_through_can_be_worked_with(data: st.DataObject) -> None:
    """From the line to the forecast."""
    keys = data.draw(st.sets(st.sampled_from(sorted(messages.SYSCTLS)), max_size=4))
    addresses = st.ip_addresses().map(str) | st.sampled_from([*ODD, "0.0.0.0/0", "1.2.3.4/33"])
    said = {
        **FACTS,
        "sysctl": {key: data.draw(SYSCTL | st.text(max_size=9)) for key in keys},
        "kernel": data.draw(st.sampled_from(["6.1", "6.18.44", "99999.1-x", "x", "6.²"])),
        "addresses": data.draw(st.lists(addresses, max_size=5)),
        "mem_total_kib": data.draw(st.integers(0, 1 << 54)),
    }
    try:
        event = messages.read(json.dumps(said).encode())
    except messages.ProtocolError as refused:
        assert str(refused).startswith("facts: ")
        return
    host = facts.host_record(event, ["clients"])
    hosts = {"server1": record("6.1", "servers"), "client1": host}
    scenario = Scenario(name="test", title="test", source_ports="kernel")
    assert capacity.predict(Topology(scenario, lab(False)), hosts, {}, 9).max_connections >= 0
    remarks.remarks(scenario, hosts)
    local = facts.Local(host)
    assert all(one.network_address in local for one in map(network, host.addresses))


@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(20, 32)), max_size=12),
    st.integers(0, 1 << 12),
)
def test_a_host_has_the_addresses_of_its_networks(
    listed: list[tuple[int, int]], place: int
) -> None:
    texts = [f"198.18.{low // 32}.{low}/{length}" for low, length in listed]
    host = record("6.1", "clients").model_copy(update={"addresses": [*texts, "fd63::/64"]})
    asked = network("198.18.0.0").network_address + place
    local = facts.Local(host)
    assert (asked in local) is any(asked in one for one in map(network, texts))
    assert network("fd63::9").network_address in local
    assert network("fd64::").network_address not in local
