#!/usr/bin/python
"""Ansible module: create or remove the lab's hosts as QEMU virtual machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.connlab_layout import LabError
from ansible.module_utils.connlab_vm_layout import lay_out
from ansible.module_utils.connlab_vm_maker import Maker
from ansible.module_utils.connlab_vm_site import Site, locked

DOCUMENTATION = r"""
module: lab_vm
short_description: Create or remove the lab's hosts as QEMU virtual machines
description:
  - Starts a virtual machine with its own kernel for each host, from a packed image, and waits until
    its sshd greets on a port of 127.0.0.1. Needs no root.
  - Creating a lab twice changes nothing, creating one over leftovers repairs it, and removing one
    twice is fine.
options:
  state: {type: str, choices: [present, absent], default: present, description: [Wanted state.]}
  name: {type: str, required: true, description: [Name of the lab.]}
  lab_dir: {type: path, required: true, description: [Directory of the lab's local state.]}
  image: {type: path, description: ["Directory with vmlinuz, initrd.img and disk.raw."]}
  accelerator:
    type: str
    choices: [auto, kvm, tcg]
    default: auto
    description: [auto is KVM if the guest's kernel really boots under it, otherwise TCG.]
  hosts:
    type: list
    elements: dict
    default: []
    description: [The hosts; all data links meet in the first one.]
    suboptions:
      name: {type: str, required: true, description: [Name in the inventory.]}
      port: {type: int, required: true, description: [Port of 127.0.0.1 for its sshd.]}
      data: {type: list, elements: str, required: true, description: [Addresses on the data plane.]}
      memory_mib: {type: int, required: true, description: [Memory of the guest.]}
      cpus: {type: int, default: 1, description: [Processors of the guest.]}
  data_prefixes: {type: list, elements: str, default: [], description: [Networks of the addresses.]}
  data_interface: {type: str, default: data0, description: [Interface on the data plane.]}
  management_interface: {type: str, default: mgmt0, description: [Interface for management.]}
  boot_args: {type: list, elements: str, default: [], description: [Kernel parameters.]}
  boot_timeout: {type: int, default: 120, description: [Seconds to boot and answer.]}
  stop_timeout: {type: int, default: 30, description: [Seconds to power off before the kill.]}
author: [connlab]
"""
EXAMPLES = r"""
- name: Create two machines
  lab_vm:
    name: connlab-vm
    lab_dir: /srv/connlab/.lab
    image: /srv/connlab/.lab/image/0123456789abcdef
    data_prefixes: [198.18.0.0/15]
    boot_args: [thash_entries=1048576]
    hosts:
      - {name: server1, port: 22201, memory_mib: 4000, data: [198.18.0.1]}
      - {name: client1, port: 22202, memory_mib: 5200, data: [198.18.1.1]}

- name: Remove the lab
  lab_vm: {name: connlab-vm, lab_dir: /srv/connlab/.lab, state: absent}
"""
RETURN = r"""
hosts: {type: dict, returned: when present, description: [Each host's action and status.]}
accelerator: {type: str, returned: when present, description: [kvm or tcg.]}
why_not_kvm: {type: str, returned: when present, description: [Empty with KVM or if not tried.]}
removed: {type: list, elements: str, returned: always, description: [What was removed.]}
"""


def present(module: AnsibleModule, site: Site, lab_dir: Path) -> dict[str, Any]:
    """Create the lab; in check mode, return what would be created."""
    params = module.params
    fleet = lay_out(params)
    if module.check_mode and not params["image"]:  # the image would be built first
        return {"changed": True, "hosts": {}, "accelerator": "", "why_not_kvm": "", "removed": []}
    maker = Maker(site, fleet, Path(params["image"]), params["accelerator"], lab_dir)
    maker.check()
    changed = not maker.plan.empty
    if not module.check_mode and (changed or not maker.answers()):
        maker.make(params["boot_timeout"], params["stop_timeout"])
    return {
        "changed": changed,
        "hosts": maker.report(),
        "accelerator": maker.kind,
        "why_not_kvm": maker.why,
        "removed": maker.plan.remove,
    }


def absent(module: AnsibleModule, site: Site) -> dict[str, Any]:
    """Remove the lab; in check mode, return what would be removed."""
    if module.check_mode:
        removed = sorted(site.look())
    else:
        removed = site.unmake(module.params["stop_timeout"])
    return {"changed": bool(removed), "removed": removed}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "name": {"type": "str", "required": True},
            "lab_dir": {"type": "path", "required": True},
            "image": {"type": "path"},
            "accelerator": {"type": "str", "choices": ["auto", "kvm", "tcg"], "default": "auto"},
            "hosts": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "data": {"type": "list", "elements": "str", "required": True},
                    "memory_mib": {"type": "int", "required": True},
                    "cpus": {"type": "int", "default": 1},
                },
            },
            "data_prefixes": {"type": "list", "elements": "str", "default": []},
            "data_interface": {"type": "str", "default": "data0"},
            "management_interface": {"type": "str", "default": "mgmt0"},
            "boot_args": {"type": "list", "elements": "str", "default": []},
            "boot_timeout": {"type": "int", "default": 120},
            "stop_timeout": {"type": "int", "default": 30},
        },
        required_if=[("state", "present", ["image", "hosts"])],
        supports_check_mode=True,
    )
    params = module.params
    lab_dir = Path(params["lab_dir"]).resolve()
    if params["state"] == "absent" and not lab_dir.exists():
        module.exit_json(changed=False, removed=[])
    try:
        site = Site(lab_dir, params["name"])
        with locked(lab_dir, params["name"], params["boot_timeout"] + params["stop_timeout"]):
            if params["state"] == "present":
                result = present(module, site, lab_dir)
            else:
                result = absent(module, site)
    except (LabError, OSError) as failure:
        module.fail_json(msg=f"lab_vm: {failure}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
