"""A server that holds every connection and sends back what it receives."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Any, Dict

from bench.agent import sockets, workers
from bench.agent.server import listener
from bench.agent.stage import Stage
from bench.agent.trials import door

BACKLOG = 65_535


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Vouch for ``endpoint`` and serve it; answer each step with the connections ``held``.

    Descriptors are the limit: the answer to ``args`` has ``most``, the most connections.
    """
    own = door.endpoint(args["endpoint"])
    most = workers.open_files("hard") - workers.RESERVE
    held: Dict[int, socket.socket] = {}
    with contextlib.ExitStack() as undo:
        undo.callback(_close, held)
        undo.enter_context(door.kept(args, [own]))
        door_ = undo.enter_context(listener(own, BACKLOG, reuse=False))
        door_.setblocking(False)
        epoll = undo.enter_context(select.epoll())
        epoll.register(door_, select.EPOLLIN)
        epoll.register(stage, select.EPOLLIN)
        stage.tell(most=most)
        while True:
            for number, _ in epoll.poll(-1, 1024):
                if number == stage.fileno():
                    if stage.step(0) is not None:
                        stage.tell(held=len(held))
                elif number == door_.fileno():
                    _accept(door_, epoll, held, most)
                else:
                    _echo(number, held)


def _accept(
    door_: socket.socket, epoll: select.epoll, held: Dict[int, socket.socket], most: int
) -> None:
    while len(held) < most:
        try:
            made, _ = door_.accept()
        except BlockingIOError:
            return
        except ConnectionError:
            continue  # reset while it was queued
        made.setblocking(False)
        held[made.fileno()] = made
        epoll.register(made, select.EPOLLIN)
    epoll.unregister(door_)  # full: connections that still wait are never accepted


def _echo(number: int, held: Dict[int, socket.socket]) -> None:
    one = held[number]
    try:
        data = one.recv(4096)
        if data:
            one.send(data)
            return
    except BlockingIOError:
        return
    except OSError:
        pass  # reset by the peer
    del held[number]
    sockets.reset(one)


def _close(held: Dict[int, socket.socket]) -> None:
    for one in held.values():
        sockets.reset(one)
