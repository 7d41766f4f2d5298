import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tune_loader import load

load("lab_common", "module_utils", "connlab_ip")
nft = load("nat_router", "module_utils", "connlab_nft")

DATA = Path(__file__).parents[2] / "data" / "nft"
FIRST, SECOND = "198.18.201.1", "198.18.201.2"


def translation(addresses: list[str], ports: list[int]) -> dict[str, Any]:
    """Return a translation of two destinations."""
    destinations = ["198.19.0.0/16", "198.18.0.9/32"]
    return {
        **{"interface": "data0", "destinations": destinations},
        **{"addresses": addresses, "ports": ports},
    }


CAPTURED = {
    "one": translation([FIRST], [1024, 65535]),
    "two": translation([FIRST, SECOND], [1024, 65535]),
    "masquerade": translation([], [5000, 5000]),
}
STATEMENTS = {
    "one": "snat ip to 198.18.201.1:1024-65535",
    "two": "snat ip to numgen inc mod 2 map { 0 : 198.18.201.1, 1 : 198.18.201.2 } : 1024-65535",
    "masquerade": "masquerade to :5000-5000",
}


def captured(name: str) -> Any:
    """Return what nft 1.0.6 printed of the table."""
    return json.loads((DATA / f"{name}.json").read_text())


@pytest.mark.parametrize("name", sorted(CAPTURED))
def test_what_nft_lists_is_read_as_what_was_written(name: str) -> None:
    assert nft.shown(captured(name)) == CAPTURED[name]


@pytest.mark.parametrize("name", sorted(CAPTURED))
def test_the_text_has_the_statements_that_were_captured(name: str) -> None:
    text = nft.ruleset(CAPTURED[name])
    assert text.count(f"meta l4proto tcp {STATEMENTS[name]}\n") == 2
    assert text.startswith("add table inet connlab_nat\ndelete table inet connlab_nat\ntable")


def rule(listing: Any, number: int = 0) -> Any:
    """Return the parts of one of a listing's rules."""
    return [entry["rule"] for entry in listing["nftables"] if "rule" in entry][number]["expr"]


def test_a_later_nft_names_the_protocol() -> None:
    listing = captured("one")
    for number in (0, 1):
        rule(listing, number)[2]["match"]["right"] = "tcp"
    assert nft.shown(listing) == CAPTURED["one"]


def test_one_port_may_be_printed_as_one() -> None:
    listing = captured("masquerade")
    rule(listing)[3]["masquerade"]["port"] = 5000
    assert nft.shown(listing) == CAPTURED["masquerade"]


def other_hook(listing: Any) -> None:
    chain = next(entry["chain"] for entry in listing["nftables"] if "chain" in entry)
    chain["hook"] = "prerouting"


def second_chain(listing: Any) -> None:
    listing["nftables"].append({"chain": {"name": "input"}})


def a_set(listing: Any) -> None:
    listing["nftables"].append({"set": {"name": "more"}})


def no_rule(listing: Any) -> None:
    listing["nftables"] = [entry for entry in listing["nftables"] if "rule" not in entry]


def only_one_rule_has_other_ports(listing: Any) -> None:
    rule(listing)[3]["snat"]["port"]["range"] = [1, 2]


def a_counter(listing: Any) -> None:
    rule(listing).insert(3, {"counter": {"packets": 0, "bytes": 0}})


def udp(listing: Any) -> None:
    rule(listing)[2]["match"]["right"] = 17


def not_equal(listing: Any) -> None:
    rule(listing)[0]["match"]["op"] = "!="


def by_source(listing: Any) -> None:
    rule(listing)[1]["match"]["left"]["payload"]["field"] = "saddr"


def no_ports(listing: Any) -> None:
    del rule(listing)[3]["snat"]["port"]


def random_turns(listing: Any) -> None:
    turns = rule(listing)[3]["snat"]["addr"]
    rule(listing)[3]["snat"]["addr"] = {
        "map": {
            "key": {"numgen": {"mode": "random", "mod": 1, "offset": 0}},
            "data": {"set": [[0, turns]]},
        }
    }


@pytest.mark.parametrize(
    "change",
    [
        *(other_hook, second_chain, a_set, no_rule, only_one_rule_has_other_ports, a_counter),
        *(udp, not_equal, by_source, no_ports, random_turns),
    ],
)
def test_a_table_that_does_something_else_is_told_apart(change: Any) -> None:
    listing = captured("one")
    changed = copy.deepcopy(listing)
    change(changed)
    assert nft.shown(changed) is None
    assert nft.shown(listing) == CAPTURED["one"]


class Runner:
    """nft(8) that answers as told."""

    def __init__(self, *answers: tuple[int, str, str]) -> None:
        self.answers, self.fed = list(answers), []  # type: ignore[var-annotated]

    def get_bin_path(self, name: str, **_: Any) -> str:
        return f"/usr/sbin/{name}"

    def run_command(self, words: list[str], data: str | None = None) -> tuple[int, str, str]:
        self.fed.append((words[1:], data))
        return self.answers.pop(0)


def test_no_table_of_the_name_is_no_translation() -> None:
    tables = '{"nftables": [{"metainfo": {}}, {"table": {"family": "ip", "name": "connlab_nat"}}]}'
    assert nft.Nft(Runner((0, tables, ""))).translation() is None


def test_the_first_line_of_nfts_complaint_is_passed_on() -> None:
    runner = Runner((1, "", "/dev/stdin:1:1-5: Error: no\nadd table\n^^^^^\n"))
    with pytest.raises(ValueError, match=r"^nft: /dev/stdin:1:1-5: Error: no$"):
        nft.Nft(runner).load("add table\n")
