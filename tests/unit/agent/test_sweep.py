"""What a worker does to many descriptors at once."""

from __future__ import annotations

import subprocess
import sys

MANY = """
import resource, socket
from bench.agent import sweep
pairs = [socket.socketpair() for _ in range(150)]
fds = [one.fileno() for one, _ in pairs]
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
assert sweep.dead(fds) == []
pairs[0][1].close()
pairs[149][1].close()
assert sweep.dead(fds) == [fds[0], fds[149]]
assert [fd for fd, _ in sweep.ready(fds, 100)] == [fds[0], fds[149]]
"""


def test_a_limit_that_is_lowered_below_what_is_held() -> None:
    """poll(2) refuses more descriptors than RLIMIT_NOFILE, open or not: EINVAL."""
    done = subprocess.run(
        [sys.executable, "-c", MANY], capture_output=True, text=True, check=False, timeout=20
    )
    assert done.returncode == 0, done.stderr
