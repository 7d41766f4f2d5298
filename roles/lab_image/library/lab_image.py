#!/usr/bin/python
"""Ansible module: create the lab's keys and its root file system."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.connlab_image import Image
from ansible.module_utils.connlab_recipe import RecipeError

DOCUMENTATION = r"""
module: lab_image
short_description: Build the root file system of the lab's hosts
description:
  - Creates the lab's keys, and builds a Debian root file system with mmdebstrap from the machine's
    own apt sources. It is cached under a hash of its recipe. An interrupted build leaves nothing
    that looks complete.
options:
  lab_dir: {type: path, required: true, description: [Directory of the lab's local state.]}
  tree: {type: path, required: true, description: [Directory of files to copy into the image.]}
  hook: {type: path, required: true, description: [Script that customizes the new tree.]}
  packages: {type: list, elements: str, required: true, description: [Debian packages.]}
  kernel:
    type: bool
    default: false
    description: [Include a kernel and an initrd, and pack the tree as a disk.]
  sources: {type: list, elements: str, default: [], description: [sources.list lines to use.]}
  keyring: {type: path, required: true, description: [Keyring of the derived sources.]}
  mgmt_prefix: {type: str, required: true, description: [Management network of the hosts.]}
  hosts: {type: int, default: 118, description: [Number of addresses in known_hosts.]}
  ports:
    type: list
    elements: int
    default: []
    description: [Ports of 127.0.0.1 that are forwarded to hosts; known_hosts covers them.]
  keep: {type: int, default: 2, description: [Images to keep, not counting those in use.]}
author: [connlab]
"""
EXAMPLES = r"""
- name: Build the image
  lab_image:
    lab_dir: /srv/connlab/.lab
    tree: "{{ role_path }}/files/rootfs"
    hook: "{{ role_path }}/files/customize.sh"
    packages: [systemd-sysv, openssh-server]
    keyring: /usr/share/keyrings/debian-archive-keyring.gpg
    mgmt_prefix: 169.254.198.0/24
"""
RETURN = r"""
path: {type: str, returned: always, description: [Directory with rootfs/ and manifest.json.]}
hash: {type: str, returned: always, description: [Hash of the recipe.]}
seconds: {type: float, returned: when built, description: [Wall time of the build.]}
removed: {type: list, elements: str, returned: always, description: [Old images removed.]}
"""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "lab_dir": {"type": "path", "required": True},
            "tree": {"type": "path", "required": True},
            "hook": {"type": "path", "required": True},
            "packages": {"type": "list", "elements": "str", "required": True},
            "kernel": {"type": "bool", "default": False},
            "sources": {"type": "list", "elements": "str", "default": []},
            "keyring": {"type": "path", "required": True},
            "mgmt_prefix": {"type": "str", "required": True},
            "hosts": {"type": "int", "default": 118},
            "ports": {"type": "list", "elements": "int", "default": []},
            "keep": {"type": "int", "default": 2},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**Image(module.params, module.check_mode).ensure())
    except RecipeError as failure:
        module.fail_json(msg=f"lab_image: {failure}")
    except OSError as failure:
        module.fail_json(msg=f"lab_image: {failure.filename}: {failure.strerror}")


if __name__ == "__main__":
    main()
