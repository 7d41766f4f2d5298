"""The address that a server sees as its peer: behind a NAT, a proxy, or nothing."""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import struct
import time
from typing import Any, Dict, List

from bench.agent import sockets
from bench.agent.control import family_of
from bench.agent.server import listener
from bench.agent.stage import Misuse, Stage
from bench.agent.trials import door

MOST = 64
"""The most connections of one step: this is about addresses, not about numbers."""

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""First bytes of a header of the PROXY protocol, version 2 (proxy-protocol.txt, 2.2)."""

_HEAD = struct.Struct(">12sBBH")


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Act as one side: ``side`` is server or client. Both have ``nonce`` and ``control``.

    A server has ``endpoints`` and ``fronts`` [[address, port]]. A step {within, count} waits for
    that many connections and answers with ``seen`` [{port, peer, header}]: the address by
    getpeername(2), and the address in a PROXY header, null without one. A client has ``source``. A
    step {targets} opens a connection to each and answers with ``opened`` [its own [address, port],
    or null if it was refused].
    """
    if args.get("side") == "server":
        _serve(stage, args)
    elif args.get("side") == "client":
        _connect(stage, args)
    else:
        raise Misuse(f"side: got {args.get('side')!r}, expected server or client")
    return {}


def _serve(stage: Stage, args: Dict[str, Any]) -> None:
    ends = door.endpoints(args["endpoints"])
    fronts = door.endpoints(args.get("fronts") or [])
    with contextlib.ExitStack() as undo:
        listening = [undo.enter_context(listener(end, 128, reuse=False)) for end in ends]
        undo.enter_context(door.kept(args, [*ends, *fronts]))
        stage.tell(listening=len(listening))
        while True:
            step = stage.step() or {}
            stage.tell(seen=seen(listening, _count(step, "count"), float(step["within"])))


def seen(listening: List[socket.socket], count: int, seconds: float) -> List[Dict[str, Any]]:
    """Accept ``count`` connections and return their peers; fewer if no more arrive in time."""
    found: List[Dict[str, Any]] = []
    ends = time.monotonic() + seconds
    while len(found) < count and (left := ends - time.monotonic()) > 0:
        for ready in select.select(listening, [], [], left)[0]:
            with ready.accept()[0] as made:
                sockets.reset_on_close(made)
                header = address_in(_first_bytes(made))
                peer = str(made.getpeername()[0])
                found.append({"port": ready.getsockname()[1], "peer": peer, "header": header})
    return found


def _first_bytes(made: socket.socket) -> bytes:
    """Return the first bytes of a connection: a header comes at once (proxy-protocol.txt, 2)."""
    made.settimeout(0.5)
    data = b""
    try:
        while len(data) < _HEAD.size or len(data) < _HEAD.size + _HEAD.unpack_from(data)[3]:
            piece = made.recv(512)
            if not piece:
                break
            data += piece
            if not data.startswith(SIGNATURE[: len(data)]):
                break
    except OSError:  # it sends nothing: no header
        pass
    return data


def address_in(data: bytes) -> Any:
    """Return the source address in a PROXY header of version 2; None if there is none."""
    if len(data) < _HEAD.size or not data.startswith(SIGNATURE):
        return None
    family = _HEAD.unpack_from(data)[2] >> 4
    size = {1: 4, 2: 16}.get(family)
    body = data[_HEAD.size :]
    if size is None or len(body) < size:
        return None
    return str(ipaddress.ip_address(body[:size]))


def _connect(stage: Stage, args: Dict[str, Any]) -> None:
    stage.tell(source=args["source"])
    held: List[socket.socket] = []
    try:
        while True:
            step = stage.step() or {}
            targets = door.endpoints(step["targets"])
            if len(targets) > MOST:
                raise Misuse(f"targets: got {len(targets)}, expected at most {MOST}")
            door.proven({**args, "control": step.get("control", args["control"])}, targets)
            opened: List[Any] = []
            for target in targets:
                made = socket.socket(family_of(target[0]), socket.SOCK_STREAM)
                held.append(made)
                made.settimeout(3)
                sockets.reset_on_close(made)
                try:
                    made.bind((str(args["source"]), 0))
                    made.connect(target)
                except OSError:
                    opened.append(None)
                else:
                    opened.append(list(made.getsockname()[:2]))
            stage.tell(opened=opened)
    finally:
        for made in held:
            made.close()


def _count(step: Dict[str, Any], key: str) -> int:
    value = step.get(key)
    if not isinstance(value, int) or not 1 <= value <= MOST:
        raise Misuse(f"{key}: got {value!r}, expected 1 to {MOST}")
    return value
