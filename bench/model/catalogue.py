"""The limits that bound how many connections can be held: what each is, where the kernel checks it,
and what raises it.

Every limit here is of one form: so much is there, so much is used, and a connection of the run
takes so much of it. Its own maximum is ``(limit - used) / per connection``.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """One limit of the model."""

    unit: str
    """Of the limit, of what is used, and of what a connection takes."""
    counts: str
    """What the limit counts, and what a connection takes of it."""
    source: str
    """Where the kernel checks it, or where the rule is from."""
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
        "RLIMIT_NOFILE of a process less what it opens besides, spread over its workers; the "
        "parent holds a pipe for each worker",
        "fs/file.c alloc_fd(): EMFILE; getrlimit(2)",
        "nofile (tune_limits), LimitNOFILE=",
    ),
    "fs.nr_open": Entry(
        "descriptors a process",
        "as nofile, where the kernel's own bound on it is lower",
        "fs/file.c alloc_fd(), expand_files(): EMFILE; kernel/sys.c do_prlimit(): EPERM",
        "fs.nr_open",
    ),
    "fs.file-max": Entry(
        "open files",
        "open files of the whole kernel; one for each end of a connection on it",
        "fs/file_table.c alloc_empty_file(): ENFILE, unless CAP_SYS_ADMIN",
        "fs.file-max",
    ),
    "pids": Entry(
        "tasks",
        "the least of cgroup pids.max, RLIMIT_NPROC, kernel.pid_max and kernel.threads-max; a "
        "worker is a task and holds what nofile lets it",
        "kernel/fork.c copy_process(), kernel/cgroup/pids.c: EAGAIN",
        "TasksMax=, nproc, kernel.pid_max",
    ),
    "memory": Entry(
        "bytes",
        "what is free or reclaimable above the floor; slab of the socket, its inode, dentry and "
        "file, its epoll items, its place in the descriptor table, and the agent's own bytes",
        "/proc/slabinfo of the host; fs/file.c alloc_fdtable(); mm/show_mem.c",
        "memory, hosts; memory_floor_mib, watch: none",
    ),
    "memory.max": Entry(
        "bytes",
        "the cgroup's memory; socket slab is charged to it",
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
