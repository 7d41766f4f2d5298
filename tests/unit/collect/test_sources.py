from __future__ import annotations

import pytest
from captured import DATA, HELD, KERNELS, texts

from bench.collect import limits, meminfo, nstat, sockstat, ss


@pytest.mark.parametrize("kernel", KERNELS)
def test_ss_summary_counts_both_ends(kernel: str) -> None:
    found = ss.parse(texts(kernel, "peak")["ss_s"])
    assert found["tcp_estab"] == 2 * HELD[kernel]
    assert found["inet_tcp_total"] == found["tcp_total"] - found["tcp_closed"]
    assert found["udp_ipv6"] == 0
    assert ss.parse(texts(kernel, "after")["ss_s"])["tcp_estab"] == 0


def test_ss_summary_of_older_versions() -> None:
    found = ss.parse(
        "Total: 160 (kernel 178)\n"
        "TCP:   9 (estab 3, closed 0, orphaned 0, synrecv 0, timewait 2/0), ports 0\n\n"
        "Transport Total     IP        IPv6\n*\t  178       -         -        \n"
        "TCP\t  9         6         3        \n"
    )
    assert (found["total"], found["tcp_total"], found["tcp_timewait"]) == (160, 9, 2)
    assert found["kernel_total"] == 178
    assert "kernel_ip" not in found
    assert found["inet_tcp_ipv6"] == 3


def test_ss_tolerates_missing_lines() -> None:
    assert ss.parse("") == {}
    assert ss.parse("Total: 13\n") == {"total": 13}


@pytest.mark.parametrize("kernel", KERNELS)
def test_sockstat(kernel: str) -> None:
    before, peak = (sockstat.parse(texts(kernel, p)["sockstat"]) for p in ("before", "peak"))
    assert peak["TCP"]["inuse"] - before["TCP"]["inuse"] == 2 * HELD[kernel] + 1
    assert set(peak["TCP"]) == {"inuse", "orphan", "tw", "alloc", "mem_pages"}
    assert peak["FRAG"] == {"inuse": 0, "memory_bytes": 0}
    assert sockstat.parse(texts(kernel, "peak")["sockstat6"])["TCP6"] == {"inuse": 0}


def test_an_idle_socket_is_charged_at_most_a_fraction_of_a_page() -> None:
    """5.10 keeps some forward allocation, 6.1 none: tcp_mem does not bound idle sockets."""
    pages = {
        kernel: sockstat.parse(texts(kernel, "peak")["sockstat"])["TCP"]["mem_pages"]
        for kernel in ("5.10", "6.1")
    }
    assert pages["6.1"] == 0
    assert pages["5.10"] < 0.25 * 2 * HELD["5.10"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_meminfo(kernel: str) -> None:
    before, peak = (meminfo.parse(texts(kernel, p)["meminfo"]) for p in ("before", "peak"))
    assert before["MemTotal"] == peak["MemTotal"] > 900_000
    assert peak["Slab"] - before["Slab"] > HELD[kernel] * 7
    assert peak["Slab"] == peak["SReclaimable"] + peak["SUnreclaim"]
    assert "HugePages_Total" not in peak
    assert "Active(anon)" in peak


@pytest.mark.parametrize("kernel", KERNELS)
def test_nstat(kernel: str) -> None:
    before, peak = (nstat.parse(texts(kernel, p)["nstat"]) for p in ("before", "peak"))
    assert peak["TcpActiveOpens"] - before["TcpActiveOpens"] == HELD[kernel]
    assert peak["TcpPassiveOpens"] - before["TcpPassiveOpens"] == HELD[kernel]
    assert peak["TcpExtListenOverflows"] == 0


def test_nstat_reads_signed_gauges() -> None:
    assert nstat.parse("#kernel\nTcpMaxConn   -1   0.0\n") == {"TcpMaxConn": -1}


def test_limits() -> None:
    found = limits.parse((DATA / "limits").read_text())
    assert found["fs.file-nr"] == "449 0 2466177"
    assert found["fs.nr_open"] == 1_048_576
    assert found["max_open_files_soft"] == found["max_open_files_hard"] == 20_000
    assert found["max_cpu_time_hard"] == "unlimited"
    assert found["max_realtime_timeout_soft"] == "unlimited"
    assert "net.netfilter.nf_conntrack_max" not in found
    row = "Max open files            1024                 524288               files     \n"
    apart = limits.parse(f"==> /proc/self/limits <==\n{row}")
    assert apart == {"max_open_files_soft": 1024, "max_open_files_hard": 524_288}
    assert limits.parse("==> /proc/sys/net/ipv4/conf/eth0.1/x <==\n1\n") == {
        "net.ipv4.conf.eth0/1.x": 1
    }


@pytest.mark.parametrize(
    ("parse", "text", "line"),
    [
        (ss.parse, "Total: 13\nnonsense 7\n", "ss_s line 2"),
        (ss.parse, "Transport Total IP IPv6\nTCP 1 x 0\n", "ss_s line 2"),
        (sockstat.parse, "sockets: used 13\nTCP: inuse\n", "sockstat line 2"),
        (sockstat.parse, "sockets used 13\n", "sockstat line 1"),
        (meminfo.parse, "MemTotal: 12 kB\nMemFree: many kB\n", "meminfo line 2"),
        (nstat.parse, "#kernel\nTcpActiveOpens many 0.0\n", "nstat line 2"),
        (limits.parse, "fs.nr_open 5\n", "limits line 1"),
        (limits.parse, "==> /proc/sys/fs/nr_open <==\n1\n2\n", "limits line 3"),
        (limits.parse, "==> /proc/self/limits <==\nMax open files 3\n", "limits line 2"),
    ],
)
def test_malformed_lines_name_source_and_line(parse, text: str, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        parse(text)
