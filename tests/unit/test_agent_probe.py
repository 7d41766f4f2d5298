"""Evidence: what a tool prints, and what becomes of a source that fails or is out of size."""

import pytest

from bench.agent import about, probe


def test_a_tool_that_fails_is_no_evidence():
    with pytest.raises(probe.Unreadable, match=r"^no such thing$"):
        probe.output(["sh", "-c", "echo half; echo first >&2; echo no such thing >&2; exit 3"])
    with pytest.raises(probe.Unreadable, match=r"^sh: exit status 3$"):
        probe.output(["sh", "-c", "echo half; exit 3"])
    assert probe.output(["sh", "-c", "echo whole"]) == "whole\n"


def test_a_tool_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(probe, "TIMEOUT", 0.2)
    with pytest.raises(probe.Unreadable, match=r"^sleep: no answer within 0.2 s$"):
        probe.output(["sleep", "30"])
    assert not probe._children


def test_a_text_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(probe.wire, "TEXT_BYTES", 100)
    monkeypatch.setattr(probe, "PIECE", 7)
    path = tmp_path / "source"
    path.write_bytes(b"x" * 100)
    assert probe.text(str(path)) == "x" * 100
    path.write_bytes(b"x" * 101)
    with pytest.raises(probe.Unreadable, match=r"source: more than 100 bytes$"):
        probe.text(str(path))


@pytest.mark.parametrize(("pids", "workers"), [([70], 0), ([70, 71, 72], 2)])
def test_of_an_agent_and_its_workers_the_workers_count(pids, workers, monkeypatch):
    monkeypatch.setattr(probe, "SOURCES", {})
    monkeypatch.setattr(probe, "_rollup", lambda pid: {"Pss": pid})
    found = probe.collect("peak", None, "src", "established", lambda: [5, 6], pids)
    assert (found["workers"], found["pss_kib"], found["held"]) == (workers, sum(pids), 11)


def test_what_ss_prints_is_counted_by_lines(tmp_path, monkeypatch):
    fake = tmp_path / "ss"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(probe, "tool", lambda name: str(fake))
    ends = [("198.18.0.1", 5000), ("fd00::1", 5001)]
    assert probe.sockets(ends, "src", "established") == 4


def test_ipv6_addresses_are_in_brackets(monkeypatch):
    asked = []

    def refuse(argv):
        asked.append(argv)
        raise OSError(2, "no such file")

    monkeypatch.setattr(probe, "_start", refuse)
    monkeypatch.setattr(probe, "tool", lambda name: name)
    with pytest.raises(OSError, match="no such file"):
        probe.sockets([("198.18.0.1", 5000), ("fd00::1", 5001)], "dst", "established")
    assert asked[0][-1] == "( dst = 198.18.0.1:5000 or dst = [fd00::1]:5001 )"


def test_a_route_to_everything_is_told_as_a_prefix(monkeypatch):
    told = {
        "-4": '[{"dst":"default"},{"dst":"198.18.0.1"}]',
        "-6": '[{"dst":"default"},{"dst":"fd63::/64"}]',
    }
    monkeypatch.setattr(about, "tool", lambda name: name)
    monkeypatch.setattr(about, "output", lambda argv: told[argv[2]])
    assert about._addresses() == ["0.0.0.0/0", "198.18.0.1", "::/0", "fd63::/64"]
