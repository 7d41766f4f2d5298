"""Both sides of a trial prove that they are of this experiment, before anything else.

The handshake is that of a run (:mod:`bench.agent.control`): both sides have a nonce from the
controller.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Iterator, List

from bench import wire
from bench.agent import control
from bench.agent.server import listener
from bench.agent.stage import Misuse


@contextlib.contextmanager
def kept(nonce: str, where: wire.Endpoint, endpoints: List[wire.Endpoint]) -> Iterator[None]:
    """The server's side: vouch for these endpoints, at ``where``, while the context lasts."""
    keeper = listener((where[0], where[1]), 128, reuse=False)
    try:
        control.Doorkeeper(keeper, nonce, endpoints).start()
        yield
    finally:
        with contextlib.suppress(OSError):  # wakes the thread that accepts
            keeper.shutdown(socket.SHUT_RDWR)
        keeper.close()


def proven(args: Any, targets: List[wire.Endpoint]) -> None:
    """The client's side: see that the targets belong to this experiment's server.

    :param args: the trial's, with ``nonce``, ``control`` [address, port] and ``source``
    :raises Misuse: if they do not; nothing has been sent to them.
    """
    address, port = args["control"]
    try:
        known = control.introduce((address, int(port)), args["nonce"], args["source"])
    except control.Refused as error:
        raise Misuse(str(error)) from error
    for target in targets:
        if (target[0], target[1]) not in known:
            raise Misuse(f"{target[0]} port {target[1]} belongs to no server of this experiment")
