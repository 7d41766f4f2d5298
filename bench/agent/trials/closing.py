"""Connections opened and closed one after the other: which side closes first, by FIN or RST.

The side that closes first by FIN ends in TIME_WAIT (RFC 9293 3.6): it has to answer the other
side's FIN again if its own ACK was lost. A side that closes by RST keeps no state.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from typing import Any, Dict, List, Optional, Tuple

from bench import wire
from bench.agent import control, probe, sockets
from bench.agent.server import listener
from bench.agent.stage import Misuse, Stage
from bench.agent.trials import door

MODES = ("client", "server", "mute")
"""Which side closes first at a port; ``mute``: the server never closes, and never reads."""

CLOSES = ("fin", "rst")

MOST = 200_000
"""The most connections of a step."""

STEP = 100.0
"""Seconds that a step may take."""

PATIENCE = 5.0
"""Seconds for one connect, and for the other side's FIN."""

LOOPBACK = "127.0.0.1"

MAX_TW_BUCKETS = "/proc/sys/net/ipv4/tcp_max_tw_buckets"

PAUSE = 0.01
"""Seconds between two tries of a four-tuple."""


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Act as one side, ``side`` server or client, until the end of the input.

    The server vouches for ``address`` and ``ports`` [[port, mode]], and serves them. The client has
    all ``targets`` [[address, port]] proven, and reports how many TIME_WAITs the kernel keeps at
    most (``max_tw_buckets``). Its steps have ``do``:

    ``churn``: open ``count`` connections to ``target``, one after the other, and send the server a
    byte on each. ``first`` closes first, client or server, by ``how``, fin or rst. The step ends at
    the first error. The answer has ``done``, ``error`` (the errno's name, or null) and ``seconds``.

    ``reuse``: open and close one connection to ``target``, and try the same four-tuple again until
    the kernel allows it or ``patience`` seconds are over. The answer has ``seconds`` from the
    close, or null. With ``bound``, a port, the socket is bound to it with SO_REUSEADDR. Otherwise
    the kernel chooses the port: net.ipv4.ip_local_port_range has to be that one port. With
    ``loopback``, a port, both ends are on this host.
    """
    if args.get("side") == "server":
        return _serve(stage, args)
    targets = door.endpoints(args["targets"])
    door.proven(args, targets)
    stage.tell(max_tw_buckets=int(probe.text(MAX_TW_BUCKETS)))
    while True:
        step = stage.step() or {}
        if step.get("do") == "churn":
            stage.tell(**_churn(args["source"], _known(step, targets), step))
        elif step.get("do") == "reuse":
            stage.tell(seconds=_reuse(args["source"], targets, step))
        else:
            raise Misuse(f"do: got {step.get('do')!r}, expected churn or reuse")


def _known(step: Dict[str, Any], targets: List[wire.Endpoint]) -> wire.Endpoint:
    target = door.endpoint(step["target"])
    if target not in targets:
        raise Misuse(f"target: got {target[0]} port {target[1]}, expected one that was proven")
    return target


class Server:
    """Listeners and their connections, in one thread."""

    def __init__(self, address: str, modes: Dict[int, str]) -> None:
        self._epoll = select.epoll()
        self._modes: Dict[int, str] = {}
        self._doors: Dict[int, socket.socket] = {}
        self._held: Dict[int, Tuple[socket.socket, str]] = {}
        try:
            for port, mode in modes.items():
                made = listener((address, port), 4096, reuse=False)
                made.setblocking(False)
                self._doors[made.fileno()] = made
                self._modes[made.fileno()] = mode
                self._epoll.register(made, select.EPOLLIN)
        except OSError:
            self.close()
            raise

    def serve(self, stage: Stage) -> None:
        """Serve until a step arrives."""
        self._epoll.register(stage, select.EPOLLIN)
        try:
            told = False
            while not told:
                for number, _ in self._epoll.poll(-1, 256):
                    if number == stage.fileno():
                        told = stage.step(0) is not None
                    elif number in self._doors:
                        self._accept(number)
                    else:
                        self._hear(number)
        finally:
            self._epoll.unregister(stage)

    def _accept(self, number: int) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            made, _ = self._doors[number].accept()
            made.setblocking(False)
            self._held[made.fileno()] = made, self._modes[number]
            if self._modes[number] != "mute":
                self._epoll.register(made, select.EPOLLIN)

    def _hear(self, number: int) -> None:
        one, mode = self._held[number]
        try:
            data = one.recv(64)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # reset by the client
        if not data or mode == "server":
            del self._held[number]
            one.close()

    def close(self) -> None:
        """Close everything by RST."""
        for one, _ in self._held.values():
            sockets.reset(one)
        for made in self._doors.values():
            made.close()
        self._held.clear()
        self._doors.clear()
        self._epoll.close()


def _serve(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    modes = {int(port): str(mode) for port, mode in args["ports"]}
    for port, mode in modes.items():
        if mode not in MODES:
            raise Misuse(f"port {port}: got {mode!r}, expected one of {', '.join(MODES)}")
    with contextlib.closing(Server(args["address"], modes)) as server:
        endpoints = [(args["address"], port) for port in modes]
        with door.kept(args, endpoints):
            while True:
                stage.tell()
                server.serve(stage)


def _churn(source: str, target: wire.Endpoint, step: Dict[str, Any]) -> Dict[str, Any]:
    count, first, how = step.get("count"), step.get("first"), step.get("how")
    if not isinstance(count, int) or not 1 <= count <= MOST:
        raise Misuse(f"count: got {count!r}, expected 1 to {MOST}")
    if first not in ("client", "server") or how not in CLOSES:
        raise Misuse(f"first, how: got {first!r}, {how!r}, expected client or server, fin or rst")
    done, error = 0, None
    began = time.monotonic()
    while done < count and time.monotonic() - began < STEP:
        try:
            _one(source, target, first == "server", how == "rst")
        except OSError as failed:
            error = errno.errorcode.get(failed.errno or 0, str(failed))
            break
        done += 1
    return {"done": done, "error": error, "seconds": time.monotonic() - began}


def _one(source: str, target: wire.Endpoint, wait: bool, reset: bool) -> None:
    """Open one connection, send a byte, and close it; ``wait``: let the server close first."""
    with socket.socket(control.family_of(source), socket.SOCK_STREAM) as made:
        made.settimeout(PATIENCE)
        sockets.choose_port_late(made)
        made.bind((source, 0))
        made.connect(target)
        made.send(b"x")
        if wait:
            made.recv(1)
        elif reset:
            sockets.reset_on_close(made)


def _reuse(source: str, targets: List[wire.Endpoint], step: Dict[str, Any]) -> Optional[float]:
    patience = step.get("patience")
    if not isinstance(patience, (int, float)) or not 0 < patience <= STEP:
        raise Misuse(f"patience: got {patience!r}, expected above 0 and at most {STEP:g}")
    for name in ("bound", "loopback"):
        port = step.get(name)
        if port is not None and not (isinstance(port, int) and 1024 <= port <= 65_535):
            raise Misuse(f"{name}: got {port!r}, expected 1024 to 65535")
    bound = step.get("bound")
    if step.get("loopback") is None:
        return _again(source, _known(step, targets), patience, bound, None)
    with listener((LOOPBACK, step["loopback"]), 16, reuse=False) as here:
        return _again(LOOPBACK, here.getsockname(), patience, bound, here)


def _again(
    source: str,
    target: wire.Endpoint,
    patience: float,
    bound: Optional[int],
    here: Optional[socket.socket],
) -> Optional[float]:
    """Return the seconds from a close until the same four-tuple is allowed again; None if never."""
    with _bound(source, bound) as made:
        made.connect(target)
        made.send(b"x")
        used = made.getsockname()
        if here is not None:
            theirs, _ = here.accept()
            made.close()
            theirs.recv(1)  # a close with unread bytes would send a RST
            theirs.close()
    closed = time.monotonic()
    while time.monotonic() - closed < patience:
        time.sleep(PAUSE)
        with _bound(source, bound) as made:
            try:
                made.connect(target)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                continue
            sockets.reset_on_close(made)
            if made.getsockname() != used:
                raise Misuse(f"ports: got {made.getsockname()[1]}, expected {used[1]} alone")
            return time.monotonic() - closed
    return None


def _bound(source: str, port: Optional[int]) -> socket.socket:
    made = socket.socket(control.family_of(source), socket.SOCK_STREAM)
    made.settimeout(PATIENCE)
    try:
        if port is None:
            sockets.choose_port_late(made)
        else:  # bind(2) then shares it with TIME_WAITs; connect(2) checks four-tuples
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((source, port or 0))
    except OSError:
        made.close()
        raise
    return made
