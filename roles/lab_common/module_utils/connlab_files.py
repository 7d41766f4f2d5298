"""Files and systemd-nspawn arguments that give a host its identity.

Pure functions: nothing here reads or changes the machine.
"""

from __future__ import annotations

import hashlib
import json
import re

from ansible.module_utils.connlab_layout import Host, Lab, machine_name, namespace


def network_file(interface: str, addresses: tuple[str, ...]) -> str:
    """Return a systemd.network(5) file with fixed addresses and no route to other networks.

    Duplicate address detection is off: the lab assigns the addresses itself, and a benchmark must
    not wait a second for each of them after a reboot.
    """
    lines = ["[Match]", f"Name={interface}", "", "[Network]"]
    lines += ["LinkLocalAddressing=no", "IPv6AcceptRA=no", "DHCP=no", "LLMNR=no"]
    lines += ["MulticastDNS=no", "ConfigureWithoutCarrier=yes", "IgnoreCarrierLoss=yes"]
    for address in addresses:
        lines += ["", "[Address]", f"Address={address}", "DuplicateAddressDetection=none"]
    return "\n".join(lines) + "\n"


def host_files(lab: Lab, host: Host) -> dict[str, str]:
    """Return the files in a host's overlay that give it its identity, by path."""
    directory = "etc/systemd/network"
    return {
        "etc/hostname": f"{host.name}\n",
        f"{directory}/10-{lab.data_interface}.network": network_file(lab.data_interface, host.data),
        f"{directory}/10-{lab.management_interface}.network": network_file(
            lab.management_interface, (host.management,)
        ),
    }


def hosts_file(lab: Lab) -> str:
    """Return the /etc/hosts of all hosts: data addresses by name, management by <name>-mgmt."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    for host in lab.hosts:
        lines += [f"{address.split('/')[0]} {host.name}" for address in host.data]
        lines.append(f"{host.management.split('/')[0]} {host.name}-mgmt")
    return "\n".join(lines) + "\n"


def configuration(lab: Lab, host: Host) -> str:
    """Return a hash of all files that a host reads only when it starts."""
    text = json.dumps(host_files(lab, host), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def nspawn_arguments(lab: Lab, host: Host, hosts_path: str, nofile: int) -> list[str]:
    """Return the arguments of systemd-nspawn(1) for a host that boots its own systemd.

    :param nofile: the hard RLIMIT_NOFILE that this machine can grant.
    """
    return [
        "--quiet",
        "--settings=no",
        "--boot",
        "--directory=root",
        f"--machine={machine_name(lab.name, host.name)}",
        f"--hostname={host.name}",
        f"--network-namespace-path=/run/netns/{namespace(lab.name, host.name)}",
        # The namespace is the host's own, and its networkd and nftables set it up.
        "--capability=CAP_NET_ADMIN",
        # No unit and no registration, because the machine's PID 1 may not be systemd.
        "--keep-unit",
        "--register=no",
        "--kill-signal=SIGRTMIN+4",
        "--console=read-only",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        # A host's overlay is disposable, so syncing it would only load the machine's disk.
        "--suppress-sync=yes",
        f"--rlimit=RLIMIT_NOFILE={nofile}",
        f"--bind-ro={escape_bind(hosts_path)}:/etc/hosts",
    ]


def escape_bind(path: str) -> str:
    """Return a path, escaped for systemd-nspawn's --bind=."""
    return path.replace("\\", "\\\\").replace(":", "\\:")


def last_words(console: str) -> str:
    """Return the last lines of a host's console, in one line and without colours."""
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", console)
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return " / ".join(line for line in lines if "Attempted to remove disk" not in line)[-300:]
