"""TCP in user space: connections that this host's kernel does not know. Runs as root.

Segments leave and arrive by a raw socket (raw(7)). The kernel gets the same segments, finds no
socket for them, and answers with RST (net/ipv4/tcp_ipv4.c ``tcp_v4_rcv``). The experiment shows
what comes of that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import time
from typing import Any, Dict, Iterator, List

from bench import wire
from bench.agent import sockets, workers
from bench.agent.stage import Misuse, Stage
from bench.agent.trials import door
from bench.agent.trials.rawsockets import MARK, Tap, Wire
from bench.agent.trials.userstack import WINDOW, Stack

FILES = 64
"""Open files that this process may have while it holds connections of its own."""

STEP = 60.0
"""Seconds that the kernel's connects may take."""


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Have ``target`` prove itself, then carry out steps until the end of the input.

    ``first_port`` and ``count`` give the source ports of all steps. A step has ``do``:

    ``raw``: do the handshake by hand from the first ``ports`` of them, with at most ``FILES`` files
    open. The answer has ``syn_acks`` and ``resets`` that were received, ``kernel_resets`` that this
    host's kernel has sent, ``held``, the ``seconds`` that it took, and the ``bytes`` that are kept
    for the connections.

    ``echo``: send a byte on ``ports`` of them; ``echoed``. ``reset``: close them all by RST.
    ``kernel``: open ``ports`` connections by connect(2), from any port, and close them; ``held``,
    ``seconds``.
    """
    target = door.endpoint(args["target"])
    ports = range(args["first_port"], args["first_port"] + args["count"])
    if not (ports and ports.start >= 1024 and ports.stop <= 65_536):
        raise Misuse(f"count: got {args['count']}, expected ports from 1024 to 65535")
    door.proven(args, [target])
    raw = Wire(args["source"], target)
    stack = Stack(raw, ports[:0])
    tap = Tap(target)
    stage.tell(mark=MARK, files=FILES)
    try:
        while True:
            step = stage.step() or {}
            if step.get("do") == "raw":
                stack.reset()
                tap.resets(ports)
                stack = Stack(raw, ports[: int(step["ports"])])
                with _few_files():
                    stage.tell(**_raw(stack, tap))
            elif step.get("do") == "echo":
                stage.tell(echoed=stack.echo(int(step["ports"])))
            elif step.get("do") == "reset":
                stack.reset()
                stage.tell()
            elif step.get("do") == "kernel":
                stage.tell(**_kernel(args["source"], target, int(step["ports"])))
            else:
                raise Misuse(f"do: got {step.get('do')!r}, expected raw, echo, reset or kernel")
    finally:
        stack.reset()
        tap.close()
        raw.close()


@contextlib.contextmanager
def _few_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _raw(stack: Stack, tap: Tap) -> Dict[str, Any]:
    seen = stack.open()
    return {
        **seen,
        "kernel_resets": tap.resets(stack.ports),
        "held": stack.held,
        "seconds": stack.seconds,
        "bytes": stack.size,
    }


def _kernel(source: str, target: wire.Endpoint, count: int) -> Dict[str, Any]:
    """Open ``count`` connections by connect(2), at most a window at a time; close them by RST."""
    workers.open_files("hard")
    held: List[socket.socket] = []
    began = time.monotonic()
    try:
        with select.epoll() as epoll:
            waiting: Dict[int, socket.socket] = {}
            while len(held) - len(waiting) < count and time.monotonic() - began < STEP:
                while len(held) < count and len(waiting) < WINDOW:
                    held.append(_begun(source, target))
                    waiting[held[-1].fileno()] = held[-1]
                    epoll.register(held[-1], select.EPOLLOUT)
                for number, _ in epoll.poll(1):
                    made = waiting.pop(number)
                    epoll.unregister(number)
                    code = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if code:
                        raise OSError(code, os.strerror(code))
            return {"held": len(held) - len(waiting), "seconds": time.monotonic() - began}
    finally:
        for one in held:
            sockets.reset(one)


def _begun(source: str, target: wire.Endpoint) -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    sockets.choose_port_late(made)
    made.bind((source, 0))
    code = made.connect_ex(target)
    if code not in (0, errno.EINPROGRESS):
        made.close()
        raise OSError(code, os.strerror(code))
    return made
