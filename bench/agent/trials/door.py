"""The proof of a trial: both sides show that they belong to this experiment, before all else.

The handshake is that of a run (:mod:`bench.agent.control`): both sides get a nonce from the
controller.
"""

from __future__ import annotations

import contextlib
from typing import Any, Iterable, Iterator, List

from bench import wire
from bench.agent import control
from bench.agent.server import listener
from bench.agent.stage import Misuse


def endpoint(said: Any) -> wire.Endpoint:
    """Return an endpoint from a trial's arguments: [address, port].

    :raises Misuse: if it is not one.
    """
    try:
        address, port = said
        return str(address), int(port)
    except (TypeError, ValueError):
        raise Misuse(f"endpoint: got {said!r}, expected [address, port]") from None


def endpoints(said: Iterable[Any]) -> List[wire.Endpoint]:
    """Return several endpoints. :raises Misuse: if one is invalid."""
    return [endpoint(one) for one in said]


@contextlib.contextmanager
def kept(args: Any, served: List[wire.Endpoint]) -> Iterator[None]:
    """Vouch for these endpoints while the context lasts: the server's side.

    :param args: the trial's, with ``nonce`` and ``control`` [address, port]
    """
    with listener(endpoint(args["control"]), 128, reuse=False) as keeper:
        doorkeeper = control.Doorkeeper(keeper, str(args["nonce"]), served)
        doorkeeper.start()
        try:
            yield
        finally:
            doorkeeper.close()


def proven(args: Any, targets: List[wire.Endpoint]) -> None:
    """Check that the targets belong to this experiment's server: the client's side.

    :param args: the trial's, with ``nonce``, ``control`` [address, port] and ``source``; for the
        path to the server also ``fronts`` and ``routers`` as in :class:`bench.wire.ClientSpec`
    :raises Misuse: if they do not; nothing has been sent to them then.
    """
    try:
        between = control.way(endpoints(args.get("fronts") or []), args.get("routers") or [])
    except ValueError as error:
        raise Misuse(f"fronts, routers: {error}") from error
    try:
        known = control.introduce(endpoint(args["control"]), args["nonce"], args["source"], between)
    except control.Refused as error:
        raise Misuse(str(error)) from error
    for target in targets:
        if target not in known:
            raise Misuse(f"{target[0]} port {target[1]} belongs to no server of this experiment")
