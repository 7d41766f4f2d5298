import json
from pathlib import Path
from typing import Any

import pytest
from tune_loader import load

load("lab_common", "module_utils", "connlab_record")
ips = load("lab_common", "module_utils", "connlab_ip")
parts = load("reverse_proxy", "module_utils", "connlab_policy_routes")
routes_module = load("reverse_proxy", "library", "connlab_proxy_routes")

# As iproute2 6.1 prints them with -N on a host without /etc/protocols.
ALWAYS = [
    {"priority": 0, "src": "all", "table": "255"},
    {"priority": 32766, "src": "all", "table": "254"},
]
RULE = {"priority": 5002, "table": 5002, "from": "198.18.0.1", "sport": 5002, "iif": "data0"}
PRINTED_RULE = {
    "priority": 5002,
    "src": "198.18.0.1",
    "iif": "data0",
    "ipproto": "ipproto-6",
    "sport": 5002,
    "table": "5002",
}
LOCAL = {"table": 5002, "via": "", "dev": "data0"}
PRINTED_LOCAL = {
    "type": "2",
    "dst": "default",
    "dev": "data0",
    "table": "5002",
    "protocol": "4",
    "scope": "254",
}
GATEWAY = {"table": 5002, "via": "198.18.211.1", "dev": "data0"}
PRINTED_GATEWAY = {
    "dst": "default",
    "gateway": "198.18.211.1",
    "dev": "data0",
    "table": "5002",
    "protocol": "4",
}


class Module:
    """The part of AnsibleModule that the functions use; ip(8) keeps rules and routes in memory."""

    def __init__(self, record: str, **params: Any) -> None:
        self.check_mode = False
        self.params = {
            "rules": [],
            "routes": [],
            "peers": [],
            "lab_name": "connlab",
            "record": record,
            **params,
        }
        self.rules: list[dict[str, Any]] = list(ALWAYS)
        self.routes: list[dict[str, Any]] = [{"dst": "198.18.0.0/15", "dev": "data0"}]
        self.ran: list[str] = []

    def get_bin_path(self, name: str, **_: Any) -> str:
        return name

    def run_command(self, words: list[str], data: str | None = None) -> tuple[int, str, str]:
        if data is None:
            shown = self.rules if "rule" in words else self.routes
            return 0, json.dumps(shown), ""
        printed = {
            parts.rule_words(RULE): (self.rules, PRINTED_RULE),
            parts.rule_words({**RULE, "iif": ""}): (
                self.rules,
                {key: value for key, value in PRINTED_RULE.items() if key != "iif"},
            ),
            parts.route_words(LOCAL): (self.routes, PRINTED_LOCAL),
            parts.route_words(GATEWAY): (self.routes, PRINTED_GATEWAY),
        }
        for line in data.splitlines():
            self.ran.append(line)
            _, verb, text = line.split(" ", 2)
            there, entry = printed[text.partition(" proto ")[0].partition(" protocol ")[0]]
            (there.append if verb == "add" else there.remove)(entry)
        return 0, "", ""


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(ips, "network_files", lambda _: [])
    monkeypatch.setattr(routes_module, "misrouted", lambda *_: [])
    return str(tmp_path / "reverse_proxy_routes.json")


def present(module: Module) -> Any:
    return routes_module.present(module, ips.Ip(module))


def absent(module: Module) -> Any:
    return routes_module.absent(module, ips.Ip(module))


def test_adds_the_route_before_the_rule_and_nothing_twice(record: str) -> None:
    module = Module(record, rules=[RULE], routes=[LOCAL])
    assert present(module)["changed"]
    assert module.ran == [
        "route add local default dev data0 scope host table 5002 proto static",
        "rule add priority 5002 from 198.18.0.1 iif data0 ipproto 6 sport 5002 table 5002 "
        "protocol static",
    ]
    again = present(module)
    assert (again["changed"], again["diff"]) == (False, [])
    assert "end with this boot" in again["reported"]["persistence"]


def test_a_servers_rule_names_no_interface(record: str) -> None:
    module = Module(record, rules=[{**RULE, "iif": ""}], routes=[GATEWAY])
    assert present(module)["changed"]
    assert module.ran[0] == "route add default via 198.18.211.1 dev data0 table 5002 proto static"
    assert " iif " not in module.ran[1]
    assert not present(module)["changed"]


def test_revert_leaves_what_was_found_and_twice_is_fine(record: str) -> None:
    module = Module(record, rules=[RULE], routes=[LOCAL])
    before = (list(module.rules), list(module.routes))
    present(module)
    module.rules.append(dict(PRINTED_RULE))  # a boot has brought it back besides
    assert absent(module)["changed"]
    assert (module.rules, module.routes) == before
    assert not Path(record).exists()
    assert not absent(module)["changed"]


def test_without_a_transparent_frontend_those_of_before_go(record: str) -> None:
    module = Module(record, rules=[RULE], routes=[LOCAL])
    present(module)
    module.params.update(rules=[], routes=[])
    assert present(module)["changed"]
    assert (module.rules, len(module.routes)) == (ALWAYS, 1)
    assert not present(module)["changed"]


def test_a_host_that_never_had_any_is_left_alone(record: str) -> None:
    module = Module(record)
    assert not present(module)["changed"]
    assert not Path(record).exists()


def test_check_mode_changes_nothing_and_shows_it(record: str) -> None:
    module = Module(record, rules=[RULE], routes=[LOCAL])
    module.check_mode = True
    result = present(module)
    assert result["changed"]
    assert "sport 5002" in result["diff"][-1]["after"]
    assert module.ran == []
    assert not Path(record).exists()


@pytest.mark.parametrize(
    "change",
    [
        {"rules": [*ALWAYS, {**PRINTED_RULE, "sport": 80}]},
        {"rules": [*ALWAYS, dict(PRINTED_RULE)]},
        {"routes": [PRINTED_GATEWAY]},
    ],
)
def test_a_table_that_somebody_else_uses_is_refused(record: str, change: dict[str, Any]) -> None:
    module = Module(record, rules=[RULE], routes=[LOCAL])
    vars(module).update(change)
    with pytest.raises(ValueError, match="reverse_proxy_table: 5002: expected a table and a prio"):
        present(module)
    assert module.ran == []


def test_what_somebody_has_put_into_a_table_since_stays(record: str) -> None:
    module = Module(record, rules=[RULE], routes=[LOCAL])
    present(module)
    strange = {**PRINTED_RULE, "sport": 80}
    module.rules.append(strange)
    module.params.update(rules=[], routes=[])
    assert present(module)["changed"]
    assert module.rules == [*ALWAYS, strange]
    assert not present(module)["changed"]
    assert module.rules == [*ALWAYS, strange]


def test_the_table_that_is_refused_is_the_one_asked_for(record: str) -> None:
    module = Module(record, rules=[RULE], routes=[LOCAL])
    present(module)
    module.routes.append({**PRINTED_GATEWAY, "table": "5003"})
    other = {"rules": [{**RULE, "table": 5003}], "routes": [{**LOCAL, "table": 5003}]}
    module.params.update(other)
    with pytest.raises(ValueError, match=r"reverse_proxy_table: 5003: expected .* default via"):
        present(module)


def test_a_rule_that_does_not_appear_is_an_error(record: str) -> None:
    module = Module(record, rules=[RULE], routes=[LOCAL])
    ip = ips.Ip(module)
    ip.batch = lambda _: None
    with pytest.raises(ValueError, match=r"wanted priority 5002 from 198\.18\.0\.1 iif data0"):
        routes_module.present(module, ip)


def test_the_drop_in_has_a_section_for_each() -> None:
    text = parts.dropin("x", [RULE, {**RULE, "iif": ""}], [LOCAL, GATEWAY])
    sections = [line for line in text.splitlines() if line and not line.startswith("#")]
    rule = ["IPProtocol=tcp", "SourcePort=5002", "Table=5002"]
    assert sections == [
        *("[RoutingPolicyRule]", "Priority=5002", "From=198.18.0.1"),
        *("IncomingInterface=data0", *rule),
        *("[RoutingPolicyRule]", "Priority=5002", "From=198.18.0.1", *rule),
        *("[Route]", "Destination=0.0.0.0/0", "Type=local", "Scope=host", "Table=5002"),
        *("[Route]", "Destination=0.0.0.0/0", "Gateway=198.18.211.1", "Table=5002"),
    ]


@pytest.mark.parametrize(
    ("everywhere", "here", "lines"), [("0", "0", 0), ("1", "0", 1), ("0", "1", 1), ("1", "2", 0)]
)
def test_a_strict_reverse_path_filter_asks_for_the_same_interface(
    tmp_path: Path, everywhere: str, here: str, lines: int
) -> None:
    for name, value in (("all", everywhere), ("data0", here)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rp_filter").write_text(f"{value}\n")
    module = Module("")
    module.routes = [{"dst": "198.18.0.1", "dev": "other0"}]
    found = parts.misrouted(ips.Ip(module), "data0", ["198.18.0.1"], tmp_path)
    assert len(found) == lines
    if lines:
        assert found[0].startswith("net.ipv4.conf.data0.rp_filter: 1: expected 0 or 2, or a route")
    module.routes = [{"dst": "198.18.0.1", "dev": "data0"}]
    assert parts.misrouted(ips.Ip(module), "data0", ["198.18.0.1"], tmp_path) == []
