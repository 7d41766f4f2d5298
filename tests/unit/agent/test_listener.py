"""The listeners of an agent's servers."""

import socket

import pytest

from bench.agent import server


@pytest.mark.parametrize(
    ("address", "option"),
    [("127.0.0.1", None), ("::1", (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))],
)
def test_a_listener_takes_connections_of_its_own_family_alone(address, option):
    with server.listener((address, 0), 8, reuse=False) as made:
        assert option is None or made.getsockopt(*option) == 1
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0


def test_an_ipv6_listener_leaves_the_port_to_ipv4():
    with server.listener(("::", 0), 8, reuse=False) as six:
        port = six.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with (
            server.listener(("0.0.0.0", port), 8, reuse=False) as four,
            socket.create_connection(("127.0.0.1", port)),
        ):
            four.settimeout(5)
            four.accept()[0].close()


def test_listeners_share_a_port_where_told_to_and_else_do_not():
    with server.listener(("127.0.0.1", 0), 8, reuse=True) as first:
        place = first.getsockname()
        server.listener(place, 8, reuse=True).close()
        with pytest.raises(server.CannotListen, match=f"cannot listen on 127.0.0.1:{place[1]}: "):
            server.listener(place, 8, reuse=False)
