"""Which of a connection's four values must differ for a second connection to be admitted.

The server's side has ``role`` server, ``endpoints``, ``control`` and ``nonce``; a step ends it. The
client's side has ``role`` client, ``sources`` (one address or two), ``targets`` (``address`` and
``port``, each with one value or two), ``source``, ``control`` and ``nonce``.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from typing import Any, Dict, List, Optional, Tuple

from bench import wire
from bench.agent import sockets
from bench.agent.control import family_of
from bench.agent.server import listener
from bench.agent.stage import Misuse, Stage
from bench.agent.trials import door

TIMEOUT = 3.0
"""Seconds for a connect, and for the server's line."""

MOST = 16
"""The most connections that the server's side holds."""


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Act as one side.

    The client's figures: by case, ``admitted``, or the call and errno that refused it.
    """
    if args.get("role") == "server":
        return _serve(stage, args)
    if args.get("role") == "client":
        return _try_all(args)
    raise Misuse(f"role: got {args.get('role')!r}, expected server or client")


def _serve(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Accept, and send each peer the four values as they are seen here."""
    endpoints = door.endpoints(args["endpoints"])
    held: List[socket.socket] = []
    with contextlib.ExitStack() as undo:
        listeners = [undo.enter_context(listener(one, MOST, reuse=False)) for one in endpoints]
        undo.enter_context(door.kept(args, endpoints))
        undo.callback(lambda: _reset(held))
        stage.tell(listening=len(listeners))
        while True:
            watched: List[Any] = [stage.fileno(), *listeners]
            readable = select.select(watched, [], [])[0]
            if stage.fileno() in readable:
                stage.step()
                return {"accepted": len(held)}
            for one in listeners:
                if one not in readable:
                    continue
                made, peer = one.accept()
                if len(held) >= MOST:
                    made.close()
                    continue
                held.append(made)
                made.sendall(_line(peer, made.getsockname()))


def _try_all(args: Dict[str, Any]) -> Dict[str, Any]:
    """Hold one connection; try a second one with the same values, and with each value changed."""
    sources = [str(one) for one in args["sources"]]
    addresses = [str(one) for one in args["targets"]["address"]]
    ports = [int(one) for one in args["targets"]["port"]]
    door.proven(args, [(address, port) for address in addresses for port in ports])
    held: List[socket.socket] = []
    cases: Dict[str, Optional[str]] = {}
    try:
        first = _bound((sources[0], 0))
        held.append(first)
        other = _bound((sources[0], 0))  # a second free port
        held.append(other)
        port, second_port = first.getsockname()[1], other.getsockname()[1]
        other.close()
        target = (addresses[0], ports[0])
        cases["first"] = _connect(first, target)

        def second(source: Tuple[str, int], target: wire.Endpoint, reuse: bool = True) -> str:
            made = socket.socket(family_of(source[0]), socket.SOCK_STREAM)
            held.append(made)
            try:
                if reuse:
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made.bind(source)
            except OSError as error:
                return "bind: " + errno.errorcode.get(error.errno or 0, str(error.errno))
            return _connect(made, target)

        own = (sources[0], port)
        cases["same, without SO_REUSEADDR"] = second(own, target, reuse=False)
        cases["same"] = second(own, target)
        cases["client port"] = second((sources[0], second_port), target)
        cases["server port"] = second(own, (addresses[0], ports[1]))
        cases["client address"] = second((sources[1], port), target) if sources[1:] else None
        cases["server address"] = second(own, (addresses[1], ports[0])) if addresses[1:] else None
    finally:
        _reset(held)
    return {"cases": cases}


def _bound(name: Tuple[str, int]) -> socket.socket:
    made = socket.socket(family_of(name[0]), socket.SOCK_STREAM)
    try:
        # On both sockets, so that the second is not refused by bind(2) (socket(7)).
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(name)
    except OSError:
        made.close()
        raise
    return made


def _connect(made: socket.socket, target: wire.Endpoint) -> str:
    """Connect, and check that the server has accepted exactly this connection."""
    made.settimeout(TIMEOUT)
    try:
        made.connect(target)
    except OSError as error:
        if isinstance(error, socket.timeout):
            return "connect: ETIMEDOUT"
        return "connect: " + errno.errorcode.get(error.errno or 0, str(error.errno))
    expected = _line(made.getsockname(), made.getpeername())
    try:
        told = made.recv(len(expected))
    except OSError as error:
        return f"recv: {error.strerror or error}"
    return "admitted" if told == expected else "mistaken for another"


def _line(client: Any, server: Any) -> bytes:
    """Return the four values as one line."""
    return f"{client[0]} {client[1]} {server[0]} {server[1]}\n".encode()


def _reset(held: List[socket.socket]) -> None:
    """Close by RST, so that no TIME_WAIT is left."""
    for made in held:
        with contextlib.suppress(OSError):
            sockets.reset_on_close(made)
        made.close()
