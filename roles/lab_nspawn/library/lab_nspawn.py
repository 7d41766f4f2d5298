#!/usr/bin/python
"""Ansible module: create or remove the lab's hosts as systemd-nspawn machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.connlab_base import locked
from ansible.module_utils.connlab_layout import LabError, ehash_entries, lay_out
from ansible.module_utils.connlab_maker import Maker
from ansible.module_utils.connlab_site import (
    Site,
    refuse_if_owned_elsewhere,
    unmake,
    what_is_there,
)

DOCUMENTATION = r"""
module: lab_nspawn
short_description: Create or remove the lab's hosts on this machine
description:
  - Boots systemd in one systemd-nspawn machine per host, each with its own network namespace and
    overlay, and waits until their SSH servers answer. Repairs a lab that is incomplete. Needs
    neither systemd as PID 1 nor udev on the machine.
options:
  state: {type: str, choices: [present, absent], default: present, description: [Wanted state.]}
  name: {type: str, required: true, description: [Name of the lab.]}
  lab_dir: {type: path, required: true, description: [Directory of the lab's local state.]}
  image: {type: path, description: [Directory of the image, which contains rootfs/.]}
  supervisor: {type: path, description: [Script that keeps one host running.]}
  hosts:
    type: list
    elements: dict
    default: []
    description: [The hosts.]
    options:
      name: {type: str, required: true, description: [Its name.]}
      management: {type: str, required: true, description: [Its management address.]}
      data: {type: list, elements: str, required: true, description: [Its data addresses.]}
  mgmt_prefix: {type: str, default: 169.254.198.0/24, description: [Management network, a /24.]}
  mgmt_interface: {type: str, default: mgmt0, description: [Management interface of a host.]}
  data_prefixes: {type: list, elements: str, default: [], description: [Data networks.]}
  data_interface: {type: str, default: data0, description: [Data interface of a host.]}
  connections: {type: int, default: 0, description: [Connections to size the hash tables for.]}
  boot_timeout: {type: int, default: 60, description: [Seconds for the hosts to answer.]}
  stop_timeout: {type: int, default: 20, description: [Seconds to power off before the kill.]}
author: [connlab]
"""
EXAMPLES = r"""
- name: Boot a server and a client
  lab_nspawn:
    name: connlab
    lab_dir: /srv/connlab/.lab
    image: /srv/connlab/.lab/image/0123456789abcdef
    supervisor: "{{ role_path }}/files/supervise.sh"
    data_prefixes: [198.18.0.0/15]
    connections: 1000000
    hosts:
      - {name: server1, management: 169.254.198.1, data: [198.18.0.1]}
      - {name: client1, management: 169.254.198.2, data: [198.18.1.1]}

- name: Remove the lab
  lab_nspawn:
    name: connlab
    lab_dir: /srv/connlab/.lab
    state: absent
"""
RETURN = r"""
hosts:
  type: dict
  returned: when present
  description: For each host its status, the action and its reason, addresses and hash table size.
removed:
  type: list
  elements: str
  returned: always
  description: What was removed.
"""

CHILD_EHASH = Path("/proc/sys/net/ipv4/tcp_child_ehash_entries")


def present(module: AnsibleModule, site: Site) -> dict[str, Any]:
    """Create the lab; in check mode, return what would be created."""
    params = module.params
    ehash = ehash_entries(params["connections"]) if params["connections"] > 0 else 0
    if ehash and not CHILD_EHASH.exists():
        module.warn(
            f"kernel {os.uname().release} has no net.ipv4.tcp_child_ehash_entries (Linux 6.1): "
            "all hosts share the machine's established-hash table"
        )
        ehash = 0
    lab = lay_out(
        params["name"],
        params["hosts"],
        params["mgmt_prefix"],
        params["data_prefixes"],
        params["data_interface"],
        params["mgmt_interface"],
        ehash,
    )
    removed: list[str] = []
    if refuse_if_owned_elsewhere(site):
        removed = what_is_there(site)
        if not module.check_mode:
            removed = unmake(site, params["stop_timeout"])
    maker = Maker(site, lab, Path(params["image"]), Path(params["supervisor"]))
    maker.check_prefix()
    removed += maker.plan.remove
    changed = bool(removed) or maker.changes
    if not module.check_mode and (changed or not maker.answers()):
        maker.make(params["boot_timeout"], params["stop_timeout"])
        changed = changed or bool(maker.plan.start)
    return {"changed": changed, "hosts": maker.report(), "removed": removed}


def absent(module: AnsibleModule, site: Site) -> dict[str, Any]:
    """Remove the lab; in check mode, return what would be removed."""
    if module.check_mode:
        removed = what_is_there(site)
    else:
        removed = unmake(site, module.params["stop_timeout"])
    return {"changed": bool(removed), "removed": removed}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "name": {"type": "str", "required": True},
            "lab_dir": {"type": "path", "required": True},
            "image": {"type": "path"},
            "supervisor": {"type": "path"},
            "hosts": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "management": {"type": "str", "required": True},
                    "data": {"type": "list", "elements": "str", "required": True},
                },
            },
            "mgmt_prefix": {"type": "str", "default": "169.254.198.0/24"},
            "mgmt_interface": {"type": "str", "default": "mgmt0"},
            "data_prefixes": {"type": "list", "elements": "str", "default": []},
            "data_interface": {"type": "str", "default": "data0"},
            "connections": {"type": "int", "default": 0},
            "boot_timeout": {"type": "int", "default": 60},
            "stop_timeout": {"type": "int", "default": 20},
        },
        required_if=[("state", "present", ["image", "supervisor", "hosts"])],
        supports_check_mode=True,
    )
    if os.geteuid() != 0:
        module.fail_json(msg="lab_nspawn: needs root to create namespaces, mounts and cgroups")
    params = module.params
    act = present if params["state"] == "present" else absent
    try:
        site = Site(Path(params["lab_dir"]).resolve(), params["name"])
        with locked(params["boot_timeout"] + params["stop_timeout"]):
            result = act(module, site)
    except LabError as failure:
        module.fail_json(msg=f"lab_nspawn: {failure}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
