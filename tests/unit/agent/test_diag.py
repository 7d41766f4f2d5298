"""What the kernel's socket diagnostics are asked, and how their answers are read."""

import collections
import errno
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import wire
from bench.agent import diag, spec, tally
from bench.agent.probe import Unreadable

DATA = Path(__file__).parents[2] / "data" / "diag"
STATES = {"estab": "established"}
ALL = {"ranges": [(1, 65535)], "side": "local", "states": list(wire.TCP_STATES), "by": "none"}
FIELDS = [diag.FAMILY, diag.STATE, *diag.PORT.values(), *diag.PEER.values()]
SOCKET, MULTI, TORN = 20, 2, 0x10


def captured(name):
    """The datagrams of one dump."""
    data, at = (DATA / name).read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        yield data[at + 4 : at + 4 + length]
        at += 4 + length


def printed():
    """Local port, state, remote address and port of every connection that ss printed."""
    for line in (DATA / "ss").read_text().splitlines():
        state, _, _, local, remote = line.split()
        state = STATES.get(state.lower(), state.lower())
        if state != "listen":
            address, _, port = remote.rpartition(":")
            address = address.strip("[]").removeprefix("::ffff:")
            yield local.rpartition(":")[2], state, address, port


class Kernel:
    """Answers dumps with datagrams in place of a netlink socket."""

    def __init__(self, answer):
        self.answer, self.asked, self.closed = answer, [], 0

    def __call__(self, family, kind, protocol):
        assert (family, protocol) == (socket.AF_NETLINK, 4)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed += 1

    def settimeout(self, seconds):
        assert seconds == diag.PATIENCE

    def sendto(self, data, address):
        self.asked.append(data)
        self.coming = iter(self.answer(len(self.asked), data))

    def recv_into(self, room, size, flags):
        assert (size, flags) == (0, socket.MSG_TRUNC)
        data = next(self.coming)
        if isinstance(data, OSError):
            raise data
        room[: len(data)] = data[: len(room)]
        return len(data)


@pytest.fixture
def kernel(monkeypatch):
    def put(answer):
        made = Kernel(answer)
        monkeypatch.setattr(diag.socket, "socket", made)
        return made

    return put


def both_families(_, asked):
    return captured("inet6" if asked[16] == socket.AF_INET6 else "inet")


@pytest.mark.parametrize(
    ("by", "side", "column"),
    [("port", "local", 0), ("state", "local", 1), ("peer", "local", 2), ("port", "peer", 3)],
)
def test_counts_what_ss_printed(kernel, by, side, column):
    asked = kernel(both_families)
    found = tally.count({**ALL, "by": by, "side": side})
    rows = list(printed())
    assert found["counts"] == collections.Counter(row[column] for row in rows)
    assert found["total"] == len(rows) > 400
    assert asked.closed == len(asked.asked) == 2


def test_a_count_by_nothing_is_a_total(kernel):
    kernel(both_families)
    found = tally.count(ALL)
    assert (found["counts"], found["total"]) == ({}, len(list(printed())))


def test_the_kernel_dropped_other_ports(kernel):
    kernel(lambda *_: captured("inet_7001"))
    found = diag.dump(b"", diag.PORT["local"])
    assert found == {socket.htons(7001): sum(row[0] == "7001" for row in printed())}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", ["inet", "inet6", "inet_established", "inet_7001"])
def test_strides_read_what_message_by_message_reads(name, field):
    strided = 0
    for data in captured(name):
        view = memoryview(data)
        quick = diag.strided(view, field)
        if quick is not None:
            assert quick == diag.plain(view, field)
            strided += len(quick.keys)
    assert strided >= (250 if name == "inet_established" else 0)


def message(length, kind=SOCKET, flags=MULTI, fill=b""):
    head = struct.pack("=IHHII", length, kind, flags, 1, 0)
    return (head + fill).ljust(length, b"\0")


messages = st.lists(
    st.tuples(
        st.sampled_from([88, 88, 88, 96, 124]),
        st.sampled_from([MULTI, MULTI, MULTI, MULTI | TORN]),
        st.binary(min_size=72, max_size=72),
    ),
    min_size=1,
    max_size=20,
)


@given(messages, st.sampled_from(FIELDS))
def test_strides_are_taken_only_where_they_hold(parts, field):
    data = memoryview(b"".join(message(n, flags=flags, fill=fill) for n, flags, fill in parts))
    expected = diag.plain(data, field)
    assert len(expected.keys) == len(parts)
    quick = diag.strided(data, field)
    even = len({n for n, _, _ in parts}) == 1 and not expected.torn
    assert (quick == expected) if even else (quick is None)


@given(st.binary(max_size=400), st.sampled_from(FIELDS))
def test_noise_is_unreadable_and_nothing_worse(noise, field):
    data = memoryview(noise)
    quick = diag.strided(data, field)
    try:
        slow = diag.plain(data, field)
    except Unreadable as reason:
        assert str(reason).startswith("sock_diag: ")
        slow = None
    if quick is not None:
        assert quick == slow


def test_a_refusal_is_named(kernel):
    kernel(lambda *_: captured("refused"))
    with pytest.raises(Unreadable, match=r"^sock_diag: EINVAL \(Invalid argument\)$"):
        tally.count(ALL)


def test_a_missing_module_is_named(kernel):
    answer = message(36, kind=2, flags=0, fill=struct.pack("=i", -errno.ENOENT))
    kernel(lambda *_: [answer])
    with pytest.raises(Unreadable, match=r"sock_diag: ENOENT .*; is the kernel module tcp_diag"):
        tally.count(ALL)


@pytest.mark.parametrize(
    ("datagram", "line"),
    [
        (message(20, kind=3, fill=struct.pack("=i", -errno.ENOMEM)), "ENOMEM"),
        (message(16, kind=4), "unknown type 4"),
        (message(200)[:150], "type 20 is cut short"),
        (message(60), "type 20 is cut short"),
        (message(16, kind=2), "type 2 is cut short"),
        (b"\0" * 8, "a message is cut short"),
        (bytes(diag.DATAGRAM + 1), "a datagram of 65537 bytes"),
        (TimeoutError("timed out"), "sock_diag: timed out"),
        (OSError(errno.ENOBUFS, "full"), "ENOBUFS"),
    ],
)
def test_what_cannot_be_read_is_one_line(kernel, datagram, line):
    made = kernel(lambda *_: [datagram])
    with pytest.raises(Unreadable, match=line):
        tally.count(ALL)
    assert made.closed == 1


def test_a_torn_dump_is_repeated_and_counted_once(kernel):
    whole = list(captured("inet_7001"))
    torn = bytearray(whole[0])
    torn[6] |= TORN
    made = kernel(lambda turn, _: [bytes(torn), *whole[1:]] if turn < 3 else whole)
    assert sum(diag.dump(b"", diag.PORT["local"]).values()) == sum(
        row[0] == "7001" for row in printed()
    )
    assert made.closed == 3


def test_dumps_that_are_all_torn_end(kernel):
    made = kernel(lambda *_: [message(20, kind=3, flags=MULTI | TORN, fill=bytes(4))])
    with pytest.raises(Unreadable, match="5 dumps, each torn by changes"):
        diag.dump(b"", diag.PORT["local"])
    assert made.closed == diag.TRIES


def test_an_empty_answer_counts_nothing(kernel):
    kernel(lambda *_: [message(20, kind=3, fill=bytes(4))])
    assert tally.count(ALL)["total"] == 0


def operations(code):
    return [struct.unpack_from("=BBH", code, at) for at in range(0, len(code), 4)]


def accepts(code, ports):
    """net/ipv4/inet_diag.c, inet_diag_bc_run(), for a (local, remote) port."""
    ops, at, left = operations(code), 0, len(code)
    local, remote = ports
    while left > 0:
        kind, yes, no = ops[at // 4]
        than = ops[at // 4 + 1][2] if kind > 1 else 0
        holds = {
            1: False,
            2: local >= than,
            3: local <= than,
            4: remote >= than,
            5: remote <= than,
        }[kind]
        step = yes if holds else no
        assert step >= 4
        at, left = at + step, left - step
    return left == 0


def audit(code):
    """net/ipv4/inet_diag.c, inet_diag_bc_audit() and valid_cc()."""
    ops = operations(code)
    on_the_way, at = set(), 0
    while at < len(code):
        on_the_way.add(at)
        at += ops[at // 4][1]
    assert at == len(code)
    for place in on_the_way:
        kind, yes, no = ops[place // 4]
        least, left = (4 if kind == 1 else 8), len(code) - place
        assert kind in (1, 2, 3, 4, 5)
        assert least <= no <= left + 4 and no % 4 == 0
        assert least <= yes <= left + 4 and yes % 4 == 0
        assert no >= left or place + no in on_the_way


port = st.integers(1, 65535)
ranges = st.lists(
    st.tuples(port, port).map(lambda pair: tuple(sorted(pair))), min_size=1, max_size=12
)


@given(ranges, st.lists(port, max_size=20))
def test_the_filter_accepts_the_ranges_and_nothing_else(wanted, more):
    code, other = diag.bytecode(wanted, "local"), diag.bytecode(wanted, "peer")
    audit(code)
    audit(other)
    edges = [end + by for pair in wanted for end in pair for by in (-1, 0, 1)]
    for one in [*edges, *more]:
        if 0 <= one <= 65535:
            inside = any(low <= one <= high for low, high in wanted)
            assert accepts(code, (one, 0)) == accepts(other, (0, one)) == inside


def test_as_many_ranges_as_may_be_asked_for():
    wanted = [(2 * at + 1, 2 * at + 1) for at in range(wire.COUNT_RANGES)]
    code = diag.bytecode(wanted, "local")
    audit(code)
    assert accepts(code, (2 * wire.COUNT_RANGES - 1, 0))
    assert not accepts(code, (2, 0))


def test_a_request_is_what_the_kernel_headers_say():
    code = diag.bytecode([(80, 443)], "local")
    data = diag.request(socket.AF_INET6, ["established", "syn-recv"], code)
    length, kind, flags = struct.unpack_from("=IHH", data)
    assert (length, kind, flags) == (len(data), 20, 0x301)
    family, protocol, ext, pad, states = struct.unpack_from("=BBBBI", data, 16)
    assert (family, protocol, ext, pad, states) == (10, 6, 0, 0, 1 << 1 | 1 << 3)
    assert data[24:72] == bytes(48)
    assert struct.unpack_from("=HH", data, 72) == (4 + len(code), 1)
    assert data[76:] == code


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"ranges": []}, "ranges: needs a list"),
        ({"ranges": [[0, 5]]}, "ranges: 0 is not a whole number from 1 to 65535"),
        ({"ranges": [[9, 1]]}, "ranges: 1 is not a whole number from 9 to 65535"),
        ({"ranges": [[1, 65536]]}, "ranges: 65536 is not"),
        ({"ranges": [[1, 2.0]]}, "ranges: 2.0 is not"),
        ({"ranges": [5000]}, r"ranges: 5000 is not \[first port, last port\]"),
        ({"ranges": [[1, 1]] * 257}, "ranges: got 257, expected at most 256"),
        ({"states": []}, "states: needs a list"),
        ({"states": ["listening"]}, "states: 'listening' is none of established, "),
        ({"by": "host"}, "by: 'host' is none of port, state, peer, none"),
        ({"by": None}, "by: None is none of"),
        ({"side": "left"}, "side: 'left' is none of local, peer"),
    ],
)
def test_what_makes_no_sense_is_refused(changed, line):
    with pytest.raises(spec.BadSpec, match=line):
        spec.count({**ALL, **changed})


def test_what_makes_sense_is_taken():
    wanted = {"ranges": [(1, 9)], "side": "peer", "states": ["closing"], "by": "peer"}
    assert spec.count({"op": "count", **wanted, "ranges": [[1, 9]]}) == wanted
