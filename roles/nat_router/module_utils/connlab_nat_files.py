"""Files that restore address translation and routes at boot.

Runs on the hosts: standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

from collections.abc import Mapping

from ansible.module_utils.connlab_ip import dropin_path
from ansible.module_utils.connlab_nft import FAMILY, TABLE, Translation, ruleset

BY = "Written by the role nat_router, reverted by playbooks/revert.yml."


def unit_name(lab_name: str) -> str:
    """Return the name of the systemd service that loads the table at boot."""
    return f"{lab_name}-nat.service"


def unit(lab_name: str, nft: str, rules: str) -> str:
    """Return the service. It starts after nftables.service, which flushes the whole ruleset."""
    return (
        f"# Lab {lab_name}: {BY}\n"
        "[Unit]\n"
        f"Description=Address translation of the lab {lab_name}\n"
        "After=nftables.service\n"
        "Before=network.target\n"
        "\n"
        "[Service]\n"
        "Type=oneshot\n"
        "RemainAfterExit=yes\n"
        f"ExecStart={nft} -f {rules}\n"
        f"ExecStop={nft} delete table {FAMILY} {TABLE}\n"
        "\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    )


def router_files(
    lab_name: str, nft: str, translation: Translation, sysctls: Mapping[str, str]
) -> dict[str, str]:
    """Return a router's files: the rules and their service, the module, the kernel parameters."""
    rules = f"/etc/nftables.d/90-{lab_name}.nft"
    values = "".join(f"{key} = {value}\n" for key, value in sysctls.items())
    return {
        rules: f"# Lab {lab_name}: {BY}\n{ruleset(translation)}",
        f"/etc/systemd/system/{unit_name(lab_name)}": unit(lab_name, nft, rules),
        # Read before systemd-sysctl.service runs, whose net.netfilter keys need the module.
        f"/etc/modules-load.d/90-{lab_name}.conf": f"# Lab {lab_name}: {BY}\nnf_conntrack\n",
        f"/etc/sysctl.d/91-{lab_name}-nat.conf": f"# Lab {lab_name}: {BY}\n{values}",
    }


def route_files(lab_name: str, interface: str, routes: Mapping[str, str]) -> dict[str, str] | None:
    """Return the systemd-networkd drop-in for routes (systemd.network(5)).

    None if networkd has no file for the interface that the drop-in could extend.
    """
    path = dropin_path(interface, f"91-{lab_name}-routes")
    if path is None:
        return None
    parts = [f"# Lab {lab_name}: {BY}\n"]
    parts += [f"[Route]\nDestination={to}\nGateway={via}\n" for to, via in routes.items()]
    return {path: "\n".join(parts)}
