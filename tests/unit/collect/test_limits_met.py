"""Sources that tell of limits met: cgroups, connection tracking, the kernel's messages."""

from __future__ import annotations

import pytest

from bench.collect import cgroups, conntrack, kernellog

CGROUP = """\
/user.slice/user-1000.slice/session-3.scope pids.max max
/user.slice/user-1000.slice/session-3.scope pids.current 7
/user.slice/user-1000.slice/session-3.scope pids.events max 0
/user.slice/user-1000.slice pids.max 1167
/user.slice/user-1000.slice pids.current 11
/user.slice/user-1000.slice pids.events max 4
/user.slice/user-1000.slice memory.max max
/user.slice/user-1000.slice memory.current 13701120
/user.slice memory.events low 0
/user.slice memory.events max 2
"""


def test_cgroups_by_name_without_what_is_unlimited() -> None:
    found = cgroups.parse(CGROUP)
    assert list(found) == [
        "/user.slice/user-1000.slice/session-3.scope",
        "/user.slice/user-1000.slice",
        "/user.slice",
    ]
    assert found["/user.slice/user-1000.slice"] == {
        "pids.max": 1167,
        "pids.current": 11,
        "pids.events:max": 4,
        "memory.current": 13_701_120,
    }
    assert found["/user.slice"] == {"memory.events:low": 0, "memory.events:max": 2}
    assert cgroups.rooms(found, "pids.max", "pids.current") == [(1167, 11)]
    assert cgroups.rooms(found, "memory.max", "memory.current") == []
    assert cgroups.parse("") == {}


@pytest.mark.parametrize("line", ["/a pids.max", "a pids.max 5", "/a pids.max five", "/a b c d 5"])
def test_a_cgroup_line_that_is_none_is_named(line: str) -> None:
    with pytest.raises(ValueError, match="cgroup line 2"):
        cgroups.parse(f"/a pids.max 1\n{line}\n")


# Linux 6.1, two processors, a table of 5,000 that was full.
CONNTRACK = """\
entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop \
icmp_error  expect_new expect_create expect_delete search_restart
00001388  00000000 00000000 00000000 00000003 00000000 00000000 00000000 00000000 00000000 \
000000a1 00000000 00000000  00000000 00000000 00000000 00000000
00001388  00000000 00000000 00000000 00000001 00000000 00000000 00000000 00000000 00000000 \
00000010 00000000 00000000  00000000 00000000 00000000 00000000
"""


def test_conntrack_adds_up_processors_but_not_the_tables_size() -> None:
    found = conntrack.parse(CONNTRACK)
    assert (found["entries"], found["drop"], found["invalid"]) == (5_000, 0xB1, 4)
    assert conntrack.parse("") == {}


@pytest.mark.parametrize(
    ("text", "said"), [("a b\n1\n", "1 values for 2 names"), ("a\nxyz\n", "is not hex")]
)
def test_conntrack_that_is_not_understood_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"line 2.*{said}"):
        conntrack.parse(text)


LOG = """\
[    2.101455] virtio_net virtio1 data0: renamed from eth1
[   61.770012] nf_conntrack: nf_conntrack: table full, dropping packet
[   66.781100] nf_conntrack: nf_conntrack: table full, dropping packet
[   70.000001] VFS: file-max limit 9000 reached
[   71.100000] cgroup: fork rejected by pids controller in /user.slice/user-1000.slice
[   72.000000] TCP: request_sock_TCP: Possible SYN flooding on port 5000. Sending cookies.
[   73.000000] TCP: out of memory -- consider tuning tcp_mem
"""


def test_messages_that_tell_of_a_limit_are_kept() -> None:
    found = kernellog.telling(LOG)
    assert len(found) == 6 and "renamed" not in "".join(found)
    said = kernellog.fresh(found[:1], found)
    assert {name: len(lines) for name, lines in said.items()} == {
        "nf_conntrack_max": 1,
        "fs.file-max": 1,
        "pids": 1,
        "backlog": 1,
        "tcp_mem": 1,
    }
    assert kernellog.fresh(found, found) == {}
