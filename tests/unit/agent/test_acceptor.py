"""A server worker whose accept(2) is refused what it needs."""

import errno
import os
import socket
import struct
import subprocess
import time

import pytest

from bench import wire
from bench.agent import acceptor, board
from bench.agent.commands import Commands
from bench.agent.spares import SPARES, Spares
from bench.agent.task import Task
from bench.agent.workers import PASS


class Listener(socket.socket):
    """Listens for real; accept(2) answers with ``code`` while there is one."""

    code = 0

    def _accept(self):
        if self.code:
            raise OSError(self.code, os.strerror(self.code))
        return super()._accept()


class Bed:
    def __init__(self, monkeypatch, listener, workers=2, kind="shared"):
        monkeypatch.setattr(acceptor, "_accept4", lambda *_: -1)  # the second question is the one
        self.now = 100.0
        monkeypatch.setattr(acceptor.time, "monotonic", lambda: self.now)
        self.board, self.rung = board.Board(workers), []
        self.reading, self.writing = os.pipe()
        spec = {"listener": kind, "nonce": "00" * 16, "nap_ms": 5, "watch": "epoll"}
        listener.setblocking(False)
        self.listener, self.peers = listener, []
        self.worker = acceptor.Acceptor(
            self.board, 0, self.reading, self.rung.append, spec, [listener], (100, 200)
        )
        self.worker._obey(b"A")

    def knock(self):
        self.peers.append(socket.create_connection(self.listener.getsockname()))

    def drain(self):
        """What the worker's loop does when it comes to its queue."""
        if self.worker._accepting and self.worker._may_ask():
            self.worker._drain_queue()

    @property
    def errors(self):
        return self.board.errors()

    def close(self):
        self.worker._drain(pace=False)
        self.worker._epoll.close()
        for peer in self.peers:
            peer.close()
        os.close(self.reading)
        os.close(self.writing)


@pytest.fixture
def bed(monkeypatch):
    made = []

    def make(**fields):
        listener = Listener()
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        made.append(Bed(monkeypatch, listener, **fields))
        return made[-1]

    yield make
    for one in made:
        one.close()
        one.listener.close()


@pytest.mark.parametrize("code", [errno.ENFILE, errno.EMFILE])
def test_refusals_are_counted_while_somebody_waits(bed, code):
    one = bed(kind="reuseport")
    name = errno.errorcode[code]
    one.listener.code = code
    one.drain()
    assert one.errors == {}  # an empty queue
    one.knock()
    for times in (1, 2, 3):
        one.now += acceptor._SHORTAGE_NAP + 0.001
        one.drain()
        one.drain()  # at once: not asked again
        assert one.errors == {name: times}
    assert one.worker._patience() <= acceptor._SHORTAGE_NAP
    assert one.rung == []
    one.listener.code = 0
    one.now += 1
    one.drain()
    assert one.board.total(board.HELD) == 1


def test_an_order_and_a_connection_at_once_wake_a_cold_acceptor_once(bed):
    one = bed()
    one.worker._chill()
    os.write(one.writing, b"AS")  # 'A' and the listener come in one batch of events, 'A' first
    one.knock()
    one.worker.run()
    assert one.board.total(board.CLOSED) == one.board.total(board.OPENED)
    assert one.worker._stopped and not one.worker._cold


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.ENOMEM])
def test_want_of_memory_is_counted(bed, code):
    one = bed()
    one.listener.code = code
    one.drain()
    assert one.errors == {errno.errorcode[code]: 1}
    assert not one.worker._may_ask()


def test_a_full_worker_lays_its_baton_down_where_another_has_room(bed):
    one = bed()
    one.knock()
    one.drain()
    one.knock()
    one.listener.code = errno.EMFILE
    one.drain()
    assert (one.rung, one.worker._accepting) == ([PASS], False)
    assert one.board.row(0)[board.FULL] == 1
    assert one.board.total(board.HELD) == 1


def test_the_last_one_keeps_it_and_goes_on_when_a_place_is_free(bed):
    one = bed()
    one.board.row(1)[board.FULL] = 1
    one.knock()
    one.drain()
    one.knock()
    one.listener.code = errno.EMFILE
    one.drain()
    assert (one.rung, one.worker._accepting) == ([], True)
    held = one.worker._fds()
    one.listener.code = 0
    one.worker._close(held)
    assert one.board.row(0)[board.FULL] == 0
    one.now += acceptor._SHORTAGE_NAP + 0.001
    one.drain()
    assert one.board.total(board.HELD) == 1


def test_the_room_is_what_was_planned_until_it_may_be_stretched(bed):
    one = bed()
    one.worker._room, one.worker._most = 2, 3
    for _ in range(5):
        one.knock()
    for _ in range(3):
        one.drain()
    assert (one.board.total(board.HELD), one.rung) == (2, [PASS])
    one.board.common[board.STRETCH] = 1
    one.worker._obey(b"A")
    for _ in range(3):
        one.drain()
    assert (one.board.total(board.HELD), one.rung) == (3, [PASS, PASS])


def test_nothing_is_accepted_while_evidence_is_gathered(bed):
    one = bed()
    one.knock()
    one.board.common[board.PAUSE] = 1
    one.drain()
    assert one.board.total(board.HELD) == 0
    one.board.common[board.PAUSE] = 0
    one.drain()
    assert one.board.total(board.HELD) == 1


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_files_are_kept_back_and_let_go():
    before, spares = open_files(), Spares()
    for _ in range(2):
        spares.take()
        spares.take()
        assert open_files() == before + SPARES
        spares.give()
        assert open_files() == before


def test_as_many_files_are_kept_back_as_there_are(monkeypatch):
    before, spares = open_files(), Spares()
    usual, left = os.open, [10]

    def refuse(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        return usual(*arguments)

    monkeypatch.setattr(os, "open", refuse)
    spares.take()
    monkeypatch.undo()
    assert open_files() == before + 10
    spares.give()
    assert open_files() == before


class FakeRole:
    def __init__(self):
        self.board = board.Board(1)


def test_files_are_kept_back_except_while_evidence_is_gathered():
    said, jobs = [], []
    made = Commands(
        Task(said.append, time.monotonic), said.append, lambda work, then: jobs.append((work, then))
    )
    role = FakeRole()
    made.task.role = role
    made._keep_back()
    full = open_files()

    def seen():
        return open_files() - full, role.board.common[board.PAUSE]

    assert seen() == (0, 0)
    made._read(lambda: "one")
    made._read(lambda: "two")
    assert seen() == (-SPARES, 1)
    for number, (work, then) in enumerate(jobs):
        then(work())
        assert seen() == ((-SPARES, 1) if number == 0 else (0, 0))
    assert said == ["one", "two"]
    made._spares.give()


def test_a_source_that_fails_does_not_keep_the_door_shut():
    jobs = []
    made = Commands(
        Task(lambda event: None, time.monotonic),
        lambda event: None,
        lambda work, then: jobs.append((work, then)),
    )
    made.task.role = FakeRole()

    def fail():
        raise ValueError("no such thing")

    made._read(fail)
    work, then = jobs.pop()
    with pytest.raises(ValueError, match="no such thing"):
        then(work())
    assert made.task.role.board.common[board.PAUSE] == 0
    made._spares.give()


def serve_bytes(one, count):
    """As many connections of which bytes are expected; their peers are ``one.peers``."""
    for _ in range(count):
        one.knock()
    while one.board.total(board.HELD) < count:
        one.drain()
    one.board.common[board.ANSWER] = board.BYTE


def turn(one):
    """What the worker's loop does with events; returns those that were no bytes."""
    return one.worker._answer_bytes(one.worker._epoll.poll(5, acceptor.BATCH))


def test_each_byte_is_answered_with_its_own(bed):
    one = bed()
    serve_bytes(one, 3)
    table = wire.round_answers("00" * 16)
    for peer, sent in zip(one.peers, (b"a", b"xyz", b"\0"), strict=True):
        peer.sendall(sent)
    while one.board.total(board.ANSWERED) < 5:
        assert turn(one) == []
    answers = [peer.recv(16) for peer in one.peers]
    assert answers == [sent.translate(table) for sent in (b"a", b"xyz", b"\0")]
    assert one.board.total(board.WRONG) == 0


def test_orders_and_hang_ups_are_left_to_the_loop(bed):
    one = bed()
    serve_bytes(one, 2)
    one.peers[0].close()
    one.peers[1].sendall(b"a")
    os.write(one.writing, b"V")
    left = []
    while one.board.total(board.ANSWERED) < 1 or len(left) < 2:
        left = turn(one)
    assert one.reading in dict(left)
    assert any(event & acceptor._OVER for _, event in left)
    assert one.board.total(board.HELD) == 2
    os.read(one.reading, 1)


def test_who_hangs_up_before_the_answer_holds_up_nobody(bed):
    one = bed()
    serve_bytes(one, 3)
    fds = one.worker._fds().tolist()
    for peer in one.peers:
        peer.sendall(b"a")
    events = []
    while len(events) < 3:
        events = one.worker._epoll.poll(5, acceptor.BATCH)
    one.peers[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.peers[1].close()  # with RST: write(2) fails
    assert one.worker._answer_bytes(events) == []
    assert one.board.total(board.ANSWERED) == 2
    assert one.worker._fds().tolist() == [fds[0], fds[2]]


def asked(bed, *requests):
    """A worker and the client's ends of connections on which something was asked."""
    one = bed()
    for request in requests:
        one.knock()
        one.drain()
        one.peers[-1].sendall(request)
    return one, [fd for fd, flag in enumerate(one.worker._held) if flag]


def test_an_echo_of_no_client_of_this_run_is_counted_and_not_answered(bed):
    nonce = "00" * 16
    right = wire.echo_request(nonce, 7)
    one, (fd,) = asked(bed, wire.echo_request("11" * 16, 7) + right)
    one.worker._reply(fd)
    assert (one.board.total(board.WRONG), one.board.total(board.ANSWERED)) == (1, 1)
    one.peers[0].settimeout(5)
    assert one.peers[0].recv(100) == wire.echo_reply(nonce, right)


def test_an_echo_in_two_pieces_is_answered_once_it_is_whole(bed):
    nonce = "00" * 16
    request = wire.echo_request(nonce, 7)
    one, (fd,) = asked(bed, request[:5])
    one.worker._reply(fd)
    assert (one.board.total(board.WRONG), one.board.total(board.ANSWERED)) == (0, 0)
    one.peers[0].sendall(request[5:])
    one.worker._reply(fd)
    assert (one.board.total(board.WRONG), one.board.total(board.ANSWERED)) == (0, 1)


def test_each_of_several_that_hang_up_at_once_is_let_go_of(bed):
    one, fds = asked(bed, b"", b"", b"")
    one.worker._close(fds[:2])
    one.worker._publish()
    counts = [one.board.total(at) for at in (board.OPENED, board.CLOSED, board.HELD)]
    assert counts == [3, 2, 1]
    one.worker._reset(fds[2:])
    one.worker._publish()
    assert (one.board.total(board.CLOSED), one.board.total(board.HELD)) == (3, 0)


@pytest.mark.parametrize(("how", "reset"), [(board.RST, True), (board.FIN, False)])
def test_held_connections_are_closed_as_ordered(bed, how, reset):
    one, _ = asked(bed, b"", b"")
    one.board.common[board.HOW] = how
    one.worker._drain()
    for peer in one.peers:
        peer.settimeout(5)
        if reset:
            with pytest.raises(ConnectionResetError, match="reset"):
                peer.recv(1)
        else:
            assert peer.recv(1) == b""


def test_at_the_end_connections_are_reset_whatever_was_ordered(bed):
    one, _ = asked(bed, b"")
    one.board.common[board.HOW] = board.FIN
    one.worker._drain(pace=False)
    one.peers[0].settimeout(5)
    with pytest.raises(ConnectionResetError, match="reset"):
        one.peers[0].recv(1)


def test_workers_share_the_rate_at_which_they_close(bed):
    one = bed()
    one.board.common[board.RATE], one.board.common[board.ACTIVE] = 90, 3
    assert one.worker._rate() == 30.0
    one.board.common[board.ACTIVE] = 0
    assert one.worker._rate() == 90.0


def test_no_rate_holds_up_the_end_of_the_agent(bed):
    """A drain asks for its rate again and again: one that is under way goes on at once."""
    one = bed()
    one.board.common[board.RATE], one.board.common[board.ACTIVE] = 1, 1
    assert one.worker._rate() == 1.0
    one.board.common[board.OVER] = 1
    assert one.worker._rate() == 0.0  # no limit


def test_a_door_that_is_shut_lets_nobody_else_in(bed):
    """At the floor the queue has no room: tcp_conn_request() drops further SYNs."""
    one = bed()
    one.worker._obey(b"H")
    assert not one.worker._accepting
    port = one.listener.getsockname()[1]
    shown = subprocess.run(
        ["ss", "-Hltn", f"( sport = :{port} )"], capture_output=True, text=True, check=True
    ).stdout
    assert shown.split()[2] == "0"
