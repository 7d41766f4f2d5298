"""TCP sockets of many states over loopback, held until standard input ends.

Prints one JSON line once all are there: [family, local port, state as ss(8) names it, remote
address] of each, listeners left out. Ports 7001 to 7008 have to be free.
"""

import contextlib
import json
import socket
import sys

V4, V6 = socket.AF_INET, socket.AF_INET6
HOLD = 20, 10, 7
"""Established connections: IPv4, IPv6, IPv4 to a listener of both."""


class Mix:
    """The sockets, and what was opened."""

    def __init__(self, hold=HOLD):
        self.kept, self.rows = contextlib.ExitStack(), []
        self._from = 20_000
        four, six, both = hold
        self.pairs(7001, V4, four)
        self.pairs(7002, V6, six)
        self.pairs(7003, V6, both, mapped=True)
        for client, server in self.pairs(7004, V4, 5, "time-wait", None):
            server.close()
            assert client.recv(1) == b""
            client.close()
        for client, server in self.pairs(7005, V6, 3, "close-wait", "fin-wait-2"):
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""
        # Without data the server's end stays a request: tcp(7), TCP_DEFER_ACCEPT.
        listener = self.listen(7006, V4, defer=60)
        for _ in range(4):
            self.row(V4, 7006, "syn-recv", "127.0.0.2")
            self.row(V4, self.connect(listener).getsockname()[1], "established", "127.0.0.1")
        # One connection fills a queue of none, the next SYNs are dropped.
        listener = self.listen(7007, V4, backlog=0)
        self.row(V4, self.connect(listener).getsockname()[1], "established", "127.0.0.1")
        self.row(V4, 7007, "established", "127.0.0.2")
        for _ in range(2):
            port = self.connect(listener, wait=False).getsockname()[1]
            self.row(V4, port, "syn-sent", "127.0.0.1")
        # Nobody's any more: the kernel keeps little more than the ports (tcp_time_wait()).
        for client, server in self.pairs(7008, V4, 2, "close-wait", "fin-wait-2"):
            client.close()
            assert server.recv(1) == b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kept.close()

    def row(self, family, port, state, peer):
        self.rows.append([int(family), port, state, peer])

    def keep(self, one):
        return self.kept.enter_context(one)

    def listen(self, port, family, backlog=1000, mapped=False, defer=0):
        one = self.keep(socket.socket(family))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == V6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not mapped))
        if defer:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, defer)
        one.bind(("::" if mapped else "::1" if family == V6 else "127.0.0.1", port))
        one.listen(backlog)
        return one

    def connect(self, listener, mapped=False, wait=True):
        family = V4 if mapped else listener.family
        one = self.keep(socket.socket(family))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._from += 1
        one.bind(("::1" if family == V6 else "127.0.0.2", self._from))
        one.setblocking(wait)
        with contextlib.suppress(BlockingIOError):
            one.connect(("::1" if family == V6 else "127.0.0.1", listener.getsockname()[1]))
        return one

    def pairs(self, port, family, number, server="established", client="established", mapped=False):
        listener = self.listen(port, family, mapped=mapped)
        made = []
        for _ in range(number):
            one = self.connect(listener, mapped)
            made.append((one, self.keep(listener.accept()[0])))
            near, far = ("::1", "::1") if one.family == V6 else ("127.0.0.2", "127.0.0.1")
            self.row(family, port, server, near)
            if client:
                self.row(one.family, one.getsockname()[1], client, far)
        return made


if __name__ == "__main__":
    with Mix() as made:
        print(json.dumps(made.rows), flush=True)
        sys.stdin.read()
