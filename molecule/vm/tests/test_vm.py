"""A guest is a separate machine, which reaches nothing but the lab."""

from conftest import Variables
from testinfra.host import Host


def test_it_runs_a_kernel_of_its_own(host: Host) -> None:
    assert "cloud" in host.check_output("uname -r")
    assert host.check_output("systemd-detect-virt --vm") in ("qemu", "kvm")


def test_its_memory_is_what_the_inventory_says(host: Host, variables: Variables) -> None:
    total = int(host.check_output("grep MemTotal /proc/meminfo").split()[1])
    wanted = variables["lab_vm_memory_mib"] << 10
    assert 0.85 * wanted < total < wanted  # the kernel keeps its own part


def test_its_hash_table_is_sized_for_the_connections(host: Host, variables: Variables) -> None:
    entries = int(host.check_output("cat /proc/sys/net/ipv4/tcp_ehash_entries"))
    assert entries >= variables["connections"]


def test_nothing_leads_out(host: Host) -> None:
    assert host.check_output("ip route show default") == ""
    assert host.check_output("ip -6 route show default") == ""


def test_no_unit_failed(host: Host) -> None:
    assert host.check_output("systemctl list-units --failed --no-legend --plain") == ""


def test_the_kernel_has_nothing_to_complain_of(host: Host) -> None:
    said = host.check_output("sudo -n dmesg --level emerg,alert,crit,err")
    assert said == ""
