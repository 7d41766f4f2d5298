from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st
from tune_loader import load

plan_module = load("tune_sysctl", "filter_plugins", "tune_sysctl")
share_module = load("lab_common", "filter_plugins", "connlab_share")

MILLION = 1_000_000
MEMORY_KIB = 24 * 2**20
SIZES = st.integers(min_value=1, max_value=100_000_000)
MEMORIES = st.integers(min_value=128 * 1024, max_value=4 * 2**30)
FIGURES = st.lists(st.integers(min_value=0, max_value=2**63 - 1), min_size=1, max_size=3)


def texts(sockets: int = MILLION, largest: int = MILLION) -> dict[str, str]:
    values = plan_module.computed(sockets, largest, MEMORY_KIB, 4096)
    return {key: value.text for key, value in values.items()}


def probe(**keys: tuple[str | None, bool]) -> dict[str, Any]:
    return {
        "memory_kib": MEMORY_KIB,
        "page_bytes": 4096,
        "keys": {
            key.replace("__", "."): {"found": found, "writable": writable}
            for key, (found, writable) in keys.items()
        },
    }


def test_every_key_of_the_field_is_computed_and_nr_open_is_first() -> None:
    assert list(texts()) == list(plan_module.KEYS)
    assert plan_module.KEYS[0] == "fs.nr_open"


def test_the_values_of_a_million() -> None:
    assert texts() == {
        "fs.nr_open": "1048576",
        "fs.file-max": "1190536",
        "fs.epoll.max_user_watches": "1190536",
        "net.ipv4.ip_local_port_range": "1024 65535",
        "net.core.somaxconn": "65535",
        "net.core.netdev_max_backlog": "65536",
        "net.ipv4.tcp_max_syn_backlog": "65536",
        "net.ipv4.tcp_rmem": "4096 4096 6291456",
        "net.ipv4.tcp_wmem": "4096 4096 4194304",
        "net.ipv4.tcp_mem": "750000 1000000 1500000",
        "net.ipv4.tcp_max_orphans": "1000000",
        "net.ipv4.tcp_max_tw_buckets": "1000000",
        "net.netfilter.nf_conntrack_max": "1190536",
        "net.netfilter.nf_conntrack_buckets": "1196032",
    }


@pytest.mark.parametrize(
    ("largest", "nr_open"),
    [
        (1, 1 << 20),
        ((1 << 20) - 4096, 1 << 20),  # just so
        ((1 << 20) - 4095, 1 << 21),
        ((1 << 21) - 4096, 1 << 21),
        (1_500_000, 1 << 21),
        (100_000_000, 1 << 27),
    ],
)
def test_nr_open_is_a_power_of_two_that_the_connections_fit(largest: int, nr_open: int) -> None:
    assert texts(largest, largest)["fs.nr_open"] == str(nr_open)


@pytest.mark.parametrize(
    ("number", "power"), [(0, 1), (1, 1), (2, 2), (3, 4), (1024, 1024), (1025, 2048)]
)
def test_the_least_power_of_two(number: int, power: int) -> None:
    assert plan_module.power_of_two(number) == power


def test_what_the_kernel_keeps_in_an_int_is_none_larger() -> None:
    assert plan_module.with_spare(8_000) == 8_000 + 1_000 + 65_536
    assert plan_module.with_spare(1_900_000_000) == 1_900_000_000 + 237_500_000 + 65_536
    assert plan_module.with_spare(2_000_000_000) == 2**31 - 1


def test_a_shared_kernel_adds_up_only_what_is_counted_together() -> None:
    alone, shared = texts(), texts(sockets=2 * MILLION)
    differing = {key for key in alone if alone[key] != shared[key]}
    assert differing == {
        "fs.file-max",
        "fs.epoll.max_user_watches",
        "net.core.netdev_max_backlog",
        "net.ipv4.tcp_mem",
        "net.ipv4.tcp_max_orphans",
        "net.netfilter.nf_conntrack_buckets",
    }


@given(SIZES, SIZES, MEMORIES, st.sampled_from([4096, 16384, 65536]))
def test_values_hold_for_any_size(sockets: int, largest: int, memory: int, page: int) -> None:
    sockets = max(sockets, largest)
    values = {
        key: [int(word) for word in value.text.split()]
        for key, value in plan_module.computed(sockets, largest, memory, page).items()
    }
    assert values["fs.nr_open"][0] >= largest + plan_module.DESCRIPTOR_RESERVE
    assert values["fs.file-max"][0] > sockets
    assert values["fs.epoll.max_user_watches"][0] > sockets
    assert values["net.netfilter.nf_conntrack_max"][0] > largest
    assert 4096 <= values["net.core.somaxconn"][0] <= 65535
    low, pressure, high = values["net.ipv4.tcp_mem"]
    assert 0 <= low <= pressure <= high
    assert high * page <= memory * 1024 // 2 + page
    for key in ("net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"):
        least, middle, most = values[key]
        assert 4096 == least <= middle <= most
    # read-back compares text: the kernel rounds a bucket count up to whole pages
    assert values["net.netfilter.nf_conntrack_buckets"][0] % (page // 8) == 0
    wide = {"fs.nr_open", "fs.file-max", "fs.epoll.max_user_watches", "net.ipv4.tcp_mem"}
    assert all(max(row) < 2**31 for key, row in values.items() if key not in wide)


@given(SIZES, SIZES, MEMORIES)
def test_more_connections_never_ask_for_less(one: int, other: int, memory: int) -> None:
    few, many = sorted((one, other))
    # Buffers shrink on purpose: a socket's part of tcp_mem does.
    less = plan_module.computed(few, few, memory, 4096)
    more = plan_module.computed(many, many, memory, 4096)
    for key in plan_module.KEYS:
        if key not in ("net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"):
            assert plan_module.raised(key, less[key].text, more[key].text) == more[key].text


@given(FIGURES, FIGURES, st.sampled_from(["net.ipv4.tcp_mem", "net.ipv4.ip_local_port_range"]))
def test_raising_grants_what_both_grant(one: list[int], other: list[int], key: str) -> None:
    found, wanted = " ".join(map(str, one)), " ".join(map(str, other))
    value = plan_module.raised(key, found, wanted)
    if len(one) != len(other):
        assert value == wanted
        return
    assert plan_module.raised(key, value, wanted) == value
    assert plan_module.raised(key, found, value) == value
    assert plan_module.raised(key, wanted, found) == value
    got = [int(word) for word in value.split()]
    rows = list(zip(got, one, other, strict=True))
    if key.endswith("port_range") and len(one) == 2:
        low, high = rows
        assert low[0] == min(low[1:]) and high[0] == max(high[1:])
    else:
        assert all(row[0] == max(row[1:]) for row in rows)


@pytest.mark.parametrize(
    ("key", "found", "wanted", "value"),
    [
        ("net.core.somaxconn", "4096", "65535", "65535"),
        ("net.core.somaxconn", "100000", "65535", "100000"),
        ("net.ipv4.tcp_rmem", "4096 131072 33554432", "8192 4096 6291456", "8192 131072 33554432"),
        ("net.ipv4.ip_local_port_range", "32768\t60999", "1024 65535", "1024 65535"),
        ("net.ipv4.ip_local_port_range", "500 60999", "1024 65535", "500 65535"),
        ("fs.file-max", "9223372036854775807", "1190536", "9223372036854775807"),
        ("net.ipv4.tcp_congestion_control", "cubic", "bbr", "bbr"),
    ],
)
def test_raised(key: str, found: str, wanted: str, value: str) -> None:
    assert plan_module.raised(key, found, wanted) == value


def test_exact_lowers_and_raise_does_not() -> None:
    seen = probe(net__core__somaxconn=("100000", True))
    for state, value in (("raise", "100000"), ("exact", "65535")):
        plan = plan_module.tune_sysctl_plan(seen, MILLION, MILLION, {}, state)
        assert [entry["value"] for entry in plan["settings"]] == [value]


def test_extra_values_win_and_may_have_a_state_of_their_own() -> None:
    seen = probe(net__core__somaxconn=("4096", True), net__ipv4__tcp_tw_reuse=("2", True))
    extra = {
        "net.core.somaxconn": 20000,
        "net.ipv4.tcp_tw_reuse": {"value": 1, "state": "exact"},
    }
    plan = plan_module.tune_sysctl_plan(seen, MILLION, MILLION, extra, "raise")
    assert {entry["key"]: entry["value"] for entry in plan["settings"]} == {
        "net.core.somaxconn": "20000",
        "net.ipv4.tcp_tw_reuse": "1",
    }


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        ({"net.core.somaxconn": ""}, "net.core.somaxconn"),
        ({"net.core.somaxconn": [1]}, "net.core.somaxconn"),
        ({"net.core.somaxconn": True}, "net.core.somaxconn"),
        ({"net.core.somaxconn": "1\nkernel.panic = 1"}, "net.core.somaxconn"),
        ({"net.core.somaxconn": {"value": 1, "state": "lower"}}, "lower"),
        ({"../../etc/passwd": 1}, "etc"),
        ({"net core": 1}, "net core"),
    ],
)
def test_an_extra_value_that_is_none_is_one_clear_line(extra: dict[str, Any], names: str) -> None:
    with pytest.raises(AnsibleFilterError, match="expected") as caught:
        plan_module.tune_sysctl_plan(probe(), MILLION, MILLION, extra, "raise")
    assert names in str(caught.value)


def test_what_a_host_cannot_write_goes_elsewhere_and_unloaded_conntrack_nowhere() -> None:
    seen = probe(
        **{
            "fs__file-max": ("2466177", False),
            "net__ipv4__tcp_mem": (None, False),
            "net__netfilter__nf_conntrack_max": (None, False),
            "net__core__somaxconn": ("4096", True),
        }
    )
    plan = plan_module.tune_sysctl_plan(seen, MILLION, MILLION, {}, "raise")
    assert [entry["key"] for entry in plan["settings"]] == ["net.core.somaxconn"]
    assert {key: entry["why"] for key, entry in plan["elsewhere"].items()} == {
        "fs.file-max": "read-only here",
        "net.ipv4.tcp_mem": "no such key here",
    }
    assert plan_module.tune_sysctl_unwritable([plan, {"elsewhere": {"x.y": {}}}]) == [
        "fs.file-max",
        "net.ipv4.tcp_mem",
        "x.y",
    ]
    alone = plan_module.tune_sysctl_elsewhere(plan, None)
    assert list(alone["observed"]) == ["fs.file-max"]  # it is high enough already
    assert alone["reported"]["net.ipv4.tcp_mem"].startswith("wanted 750000 1000000 1500000, found")
    below = {
        "settings": {"net.ipv4.tcp_mem": {"found": "1 2 3", "set": "4 5 6", "wanted": "4 5 6"}},
        "reported": {"fs.file-max": "wanted 3, found 2: read-only here"},
    }
    owned = plan_module.tune_sysctl_elsewhere(plan, below)
    assert owned["reported"] == {}
    assert owned["observed"]["net.ipv4.tcp_mem"]["where"] == "underlay"


def test_nothing_unwritable_is_left_unsaid() -> None:
    seen = probe(net__ipv4__tcp_mem=(None, False))
    plan = plan_module.tune_sysctl_plan(seen, MILLION, MILLION, {}, "raise")
    outcome = plan_module.tune_sysctl_elsewhere(plan, {})
    assert "net.ipv4.tcp_mem" in outcome["reported"]


def test_the_machine_underneath_sets_only_what_hosts_could_not() -> None:
    seen = probe(**{"fs__file-max": ("1000", True), "net__core__somaxconn": ("4096", True)})
    plan = plan_module.tune_sysctl_plan(
        seen, 2 * MILLION, MILLION, {}, "raise", only=["fs.file-max"]
    )
    assert [entry["key"] for entry in plan["settings"]] == ["fs.file-max"]


def test_shares_cover_all_connections_and_are_fair() -> None:
    groups = {"servers": ["s"], "clients": ["a", "b", "c"], "proxies": ["p"], "routers": ["r"]}
    assert share_module.connlab_shares("1000000", groups) == {
        "s": 1000000,
        "a": 333334,
        "b": 333334,
        "c": 333334,
        "p": 2000000,
        "r": 1000000,
    }
    assert share_module.connlab_share(10, groups, "elsewhere") == 10


@pytest.mark.parametrize("connections", [0, -1, "abc", "", "1e6", 1.5, None, 100_000_001, "٣"])
def test_connections_that_are_no_number_of_connections(connections: object) -> None:
    with pytest.raises(AnsibleFilterError, match=r"connections: .*expected"):
        share_module.connlab_shares(connections, {"servers": ["s"]})
