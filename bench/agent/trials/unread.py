"""The cost of buffers: connections whose reader does not read, and one sender that never stops.

Server and client are the two sides of one experiment. The kernel itself accounts for the bytes that
a socket holds, so other activity of the machine is not included.
"""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import termios
import time
from typing import Any, Dict, Iterator, List

from bench import wire
from bench.agent import control, probe, sockets, workers
from bench.agent.server import listener
from bench.agent.stage import Misuse, Stage
from bench.agent.trials import door

MOST_BYTES = 2 << 30
"""The most bytes that one step may send."""

PATIENCE = 30.0
"""Seconds for a step."""

STILL = 0.5
"""Seconds without a byte sent after which a sender counts as blocked. A receiver delays an
acknowledgement for 0.2 s at most (include/net/tcp.h TCP_DELACK_MAX), and a lost window update is
asked for after 0.2 s (TCP_RTO_MIN)."""

READ = 1 << 20
"""Bytes to read at a time."""

SO_MEMINFO = 55
"""include/uapi/asm-generic/socket.h; the array is that of include/uapi/linux/sock_diag.h."""

_MEMINFO = struct.Struct("=9I")
_INT = struct.Struct("=i")


def account(link: socket.socket) -> Dict[str, int]:
    """Return the bytes that the kernel has charged to a socket, and the sizes of its buffers."""
    names = ("received", "rcvbuf", "sent", "sndbuf", "reserved", "queued", "options", "backlog")
    raw = link.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size)
    return dict(zip(names, _MEMINFO.unpack(raw)))


def waiting(link: socket.socket, request: int) -> int:
    """Return the bytes that wait: FIONREAD to be read, TIOCOUTQ to be acknowledged (tcp(7))."""
    return int(_INT.unpack(fcntl.ioctl(link.fileno(), request, b"\0" * 4))[0])


def look(links: List[socket.socket]) -> Dict[str, Any]:
    """Return what these sockets hold, and the kernel's memory as a whole."""
    unread = [waiting(link, termios.FIONREAD) for link in links]
    accounts = [account(link) for link in links]
    meminfo = {
        row.split(":")[0]: int(row.split()[1]) for row in probe.text("/proc/meminfo").splitlines()
    }
    last = accounts[-1] if accounts else {}
    return {
        "connections": len(links),
        "unread": sum(unread),
        "least": min(unread, default=0),
        "charged": sum(one["received"] + one["queued"] + one["reserved"] for one in accounts),
        "buffered": sum(one["received"] + one["queued"] for one in accounts),
        "pages": _pages(),
        "slab_kib": meminfo["Slab"],
        "available_kib": meminfo["MemAvailable"],
        "last": {"unread": unread[-1] if unread else 0, **last},
    }


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Act as one side.

    ``args``: ``side`` server or client, ``target`` [address, port], ``nonce``, ``control``.

    The server's steps: ``accept`` that many connections; ``expect``: wait for that many unread
    bytes; ``read`` at most that many bytes from the last connection. The client's: ``connect`` that
    many connections; ``send`` that many bytes on each; ``flood`` the last one with at most that
    many bytes. All have ``seconds``, a time limit.
    """
    if args.get("side") not in ("server", "client"):
        raise Misuse(f"unread: side: got {args.get('side')!r}, expected server or client")
    workers.open_files("hard")
    target = door.endpoint(args["target"])
    if args["side"] == "server":
        return _serve(stage, args, target)
    return _send(stage, args, target)


def _serve(stage: Stage, args: Dict[str, Any], target: wire.Endpoint) -> Dict[str, Any]:
    with _links() as links, contextlib.closing(listener(target, 4096, reuse=False)) as ear:
        ear.settimeout(PATIENCE)
        with door.kept(args, [target]):
            told = {**look(links), "rmem": _three("tcp_rmem"), "wmem": _three("tcp_wmem")}
            while True:
                stage.tell(**told)
                step = stage.step() or {}
                until = time.monotonic() + float(step.get("seconds", PATIENCE))
                for _ in range(int(step.get("accept", 0))):
                    links.append(ear.accept()[0])
                    sockets.reset_on_close(links[-1])
                if "read" in step:
                    _bursts(links[-1], int(step["read"]), until)
                if "expect" in step:
                    _settle(links, int(step["expect"]), until)
                told = look(links)


def _send(stage: Stage, args: Dict[str, Any], target: wire.Endpoint) -> Dict[str, Any]:
    door.proven(args, [target])
    with _links() as links:
        told: Dict[str, Any] = {}
        while True:
            stage.tell(**told)
            step = stage.step() or {}
            until = time.monotonic() + float(step.get("seconds", PATIENCE))
            for _ in range(int(step.get("connect", 0))):
                links.append(_connected(target, str(args["source"])))
            told = {}
            if "send" in step:
                told["sent"] = _spread(links, _bounded(int(step["send"]) * len(links)), until)
            if "flood" in step:
                told["sent"] = _flood(links[-1], _bounded(int(step["flood"])), until)
                told["queued"] = waiting(links[-1], termios.TIOCOUTQ)
                told["sndbuf"] = account(links[-1])["sndbuf"]


@contextlib.contextmanager
def _links() -> Iterator[List[socket.socket]]:
    """Yield a list of connections that are reset at the end, so that no TIME_WAIT is left."""
    links: List[socket.socket] = []
    try:
        yield links
    finally:
        for link in links:
            link.close()


def _connected(target: wire.Endpoint, source: str) -> socket.socket:
    link = socket.socket(control.family_of(target[0]), socket.SOCK_STREAM)
    try:
        link.settimeout(PATIENCE)
        sockets.reset_on_close(link)
        if link.family == socket.AF_INET:
            sockets.choose_port_late(link)
        link.bind((source, 0))
        link.connect(target)
        link.setblocking(False)
    except BaseException:
        link.close()
        raise
    return link


def _bounded(wanted: int) -> int:
    if not 0 < wanted <= MOST_BYTES:
        raise Misuse(f"unread: bytes: got {wanted}, expected 1 to {MOST_BYTES}")
    return wanted


def _spread(links: List[socket.socket], wanted: int, until: float) -> int:
    """Send an equal part of ``wanted`` on each; return the bytes sent and acknowledged."""
    each = wanted // len(links)
    left = {link: each for link in links}
    while left and time.monotonic() < until:
        for link in list(left):
            try:
                left[link] -= link.send(b"\0" * min(left[link], 1 << 16))
            except BlockingIOError:
                continue
            if not left[link]:
                del left[link]
        if left:
            time.sleep(0.01)
    while any(waiting(link, termios.TIOCOUTQ) for link in links) and time.monotonic() < until:
        time.sleep(0.01)
    unacknowledged = sum(waiting(link, termios.TIOCOUTQ) for link in links)
    return each * len(links) - sum(left.values()) - unacknowledged


def _flood(link: socket.socket, most: int, until: float) -> int:
    """Send until the kernel takes no more for :data:`STILL`; return the bytes that it took."""
    block = memoryview(b"\0" * (1 << 18))
    room = select.poll()  # select(2) cannot handle a descriptor above 1,023
    room.register(link, select.POLLOUT)
    sent = 0
    while sent < most and time.monotonic() < until:
        if not room.poll(STILL * 1000):
            break
        with contextlib.suppress(BlockingIOError):
            sent += link.send(block[: most - sent])
    return sent


def _bursts(link: socket.socket, most: int, until: float) -> None:
    """Read everything whenever nothing more arrives, as long as that makes the buffer grow.

    The kernel grows a receive buffer by the bytes that an application reads within a round trip
    (net/ipv4/tcp_input.c ``tcp_rcv_space_adjust``). So reading a whole window at once grows it
    most.
    """
    done, idle, size = 0, 0, 0
    while done < most and idle < 8 and _rest(link, until):
        for _ in range(waiting(link, termios.FIONREAD) // READ + 1):
            done += len(link.recv(READ, socket.MSG_DONTWAIT))
            if not waiting(link, termios.FIONREAD):
                break
        now = account(link)["rcvbuf"]
        idle, size = (0, now) if now > size else (idle + 1, size)
    _rest(link, until)


def _rest(link: socket.socket, until: float) -> bool:
    """Wait until nothing more arrives; return whether there is something to read."""
    seen, since = -1, time.monotonic()
    while time.monotonic() < min(until, since + 4 * STILL):
        now = waiting(link, termios.FIONREAD)
        if now == seen and now:
            return True
        seen = now
        time.sleep(0.02)
    return bool(seen > 0)


def _settle(links: List[socket.socket], expected: int, until: float) -> None:
    """Wait until ``expected`` bytes are unread, or none has arrived for a while."""
    seen, since = -1, time.monotonic()
    while time.monotonic() < until:
        now = sum(waiting(link, termios.FIONREAD) for link in links)
        if now >= expected:
            return
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() > since + 4 * STILL:
            return
        time.sleep(0.02)


def _pages() -> int:
    """Return the pages charged to TCP's buffers by the whole kernel (``/proc/net/sockstat``)."""
    for row in probe.text("/proc/net/sockstat").splitlines():
        words = row.split()
        if words[0] == "TCP:":
            return int(words[words.index("mem") + 1])
    raise OSError(0, "/proc/net/sockstat has no line TCP:")


def _three(key: str) -> List[int]:
    return [int(word) for word in probe.text(f"/proc/sys/net/ipv4/{key}").split()]
