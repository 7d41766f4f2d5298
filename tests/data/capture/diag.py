"""Captures what sock_diag(7) answers: ``unshare -n python3 tests/data/capture/diag.py DIR``.

Needs root and PYTHONPATH=. of the checkout. The new network namespace has no sockets but those of
``sockets.py``. A file holds the datagrams of one dump as they came, each behind its length (4
bytes, little endian).
"""

import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from sockets import V4, V6, Mix

from bench import wire
from bench.agent import diag

ALL = list(wire.TCP_STATES)


def datagrams(asked):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as kernel:
        kernel.sendto(asked, (0, 0))
        while True:
            got = kernel.recv(1 << 16)
            yield got
            at = 0
            while at < len(got):
                length, kind = struct.unpack_from("=IH", got, at)
                if kind in (2, 3):  # NLMSG_ERROR, NLMSG_DONE
                    return
                at += (length + 3) & ~3


def save(path, asked):
    path.write_bytes(b"".join(struct.pack("<I", len(one)) + one for one in datagrams(asked)))


def main():
    out = Path(sys.argv[1])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with Mix((160, 40, 30)):
        time.sleep(0.2)  # the last FINs and ACKs
        every = diag.bytecode([(1, 65535)], "local")
        save(out / "inet", diag.request(V4, ALL, every))
        save(out / "inet6", diag.request(V6, ALL, every))
        save(out / "inet_established", diag.request(V4, ["established"], every))
        save(out / "inet_7001", diag.request(V4, ALL, diag.bytecode([(7001, 7001)], "local")))
        save(out / "refused", diag.request(V4, ALL, every[:-4]))
        (out / "ss").write_text(
            subprocess.run(["ss", "-Htan"], capture_output=True, text=True, check=True).stdout
        )


main()
