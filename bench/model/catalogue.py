"""The limits that bound how many connections can be held: what each limit counts, where the kernel
checks it, and what raises it.

Every limit here has the same form: the amount that exists, the amount already in use, and the
amount that a connection of the run takes. Its own maximum is ``(limit - used) / per connection``.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """One limit of the model."""

    unit: str
    """Unit of the limit, of the amount in use, and of the amount that a connection takes."""
    counts: str
    """The things that the limit counts, and what a connection takes of them."""
    source: str
    """The place where the kernel checks it, or the source of the rule."""
    raise_by: str
    """The sysctl, file or resource that raises it."""


CATALOGUE: dict[str, Entry] = {
    "tuples": Entry(
        "four-tuples",
        "client addresses x client ports x server addresses x server ports, each used once",
        "RFC 9293 3.3.1: a connection is its local and remote address and port",
        "client addresses (alias_ips), server ports, clients",
    ),
    "ip_local_port_range": Entry(
        "ports",
        "the range less ip_local_reserved_ports, for every client address and server endpoint; "
        "only where the kernel chooses the source port",
        "net/ipv4/inet_hashtables.c __inet_hash_connect(): EADDRNOTAVAIL",
        "net.ipv4.ip_local_port_range, client addresses",
    ),
    "nofile": Entry(
        "descriptors a process",
        "RLIMIT_NOFILE of each worker less the descriptors that it needs for itself; the parent "
        "holds a pipe for each worker",
        "fs/file.c alloc_fd(): EMFILE; getrlimit(2)",
        "nofile (tune_limits), LimitNOFILE=",
    ),
    "fs.nr_open": Entry(
        "descriptors a process",
        "as nofile, on hosts where fs.nr_open is lower than RLIMIT_NOFILE",
        "fs/file.c alloc_fd(), expand_files(): EMFILE; kernel/sys.c do_prlimit(): EPERM",
        "fs.nr_open",
    ),
    "fs.file-max": Entry(
        "open files",
        "open files of the whole kernel, one for each end of a connection",
        "fs/file_table.c alloc_empty_file(): ENFILE, unless CAP_SYS_ADMIN",
        "fs.file-max",
    ),
    "pids": Entry(
        "tasks",
        "the lowest of cgroup pids.max, RLIMIT_NPROC, kernel.pid_max and kernel.threads-max; each "
        "worker is a task and holds as many connections as nofile allows",
        "kernel/fork.c copy_process(), kernel/cgroup/pids.c: EAGAIN",
        "TasksMax=, nproc, kernel.pid_max",
    ),
    "memory": Entry(
        "bytes",
        "free or reclaimable memory above the floor; a connection takes the slab of its socket, "
        "inode, dentry, file and epoll items, its place in the descriptor table, and the agent's "
        "own bytes",
        "/proc/slabinfo of the host; fs/file.c alloc_fdtable(); mm/show_mem.c",
        "memory, hosts; memory_floor_mib, watch: none",
    ),
    "memory.max": Entry(
        "bytes",
        "memory of the cgroup, to which the sockets' slab is charged",
        "mm/memcontrol.c: slab caches with SLAB_ACCOUNT; cgroup-v2 memory.max",
        "MemoryMax=",
    ),
    "fs.epoll.max_user_watches": Entry(
        "watches",
        "epoll items of one user on the whole kernel, one for each watched socket",
        "fs/eventpoll.c ep_insert(): ENOSPC",
        "fs.epoll.max_user_watches; watch: none",
    ),
    "nf_conntrack_max": Entry(
        "tracked connections",
        "entries of the network namespace's table, where tracking is active",
        "net/netfilter/nf_conntrack_core.c __nf_conntrack_alloc(): the packet is dropped",
        "net.netfilter.nf_conntrack_max; notrack",
    ),
}
"""Every limit of the model, by name."""
