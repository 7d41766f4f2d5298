#!/usr/bin/python
"""Ansible module: restore settings that killed experiments left changed on a host."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.connlab_journal import heal

DOCUMENTATION = r"""
module: connlab_guard
short_description: Restore settings that killed experiments left changed
description:
  - Undoes the changes in the journals of guards that are gone, the latest first. A setting that
    another user or program changed since is kept and named, and the module fails.
  - In check mode it shows what it would restore.
options: {}
author: [connlab]
"""
EXAMPLES = r"""
- name: Restore settings that killed guards left changed
  connlab_guard:
"""
RETURN = r"""
healed: {type: list, elements: str, returned: always, description: [Restored settings.]}
"""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    try:
        outcome = heal(write=not module.check_mode)
    except OSError as error:
        module.fail_json(msg=f"guard: {error}")
    if outcome.kept or outcome.failed:
        said = "; ".join([*outcome.failed, *outcome.kept])
        module.fail_json(msg=f"guard: {said}", healed=outcome.healed)
    diff = [
        {"before_header": each, "after_header": each, "before": "set\n", "after": ""}
        for each in outcome.healed
    ]
    module.exit_json(changed=bool(outcome.healed), healed=outcome.healed, diff=diff)


if __name__ == "__main__":
    main()
