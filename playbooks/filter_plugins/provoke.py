"""Rows of the table of provoked limits: predicted, measured, named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def provoke_row(case: Mapping[str, Any], outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return one row of the table.

    :param case: the case's entry in ``vars/provocations.yml``
    :param outcome: the result of the action ``bench_run``
    """
    run = outcome["ansible_facts"]["bench_run"]
    predicted, found, counts = run["predicted"], run["diagnosis"], run["measured"]["established"]
    held = min(counts.values())
    expected = predicted["limits"].get(case["bound_by"])
    off = held / expected - 1 if expected else None
    wrong = []
    if run["verdict"] != "pass":
        wrong.append(f"{case['name']}: verdict {run['verdict']}: {run['reason']}")
    if found["sure"] == "unsure":
        wrong.append(f"{case['name']}: the diagnosis is unsure")
    if found["bound_by"] != case["bound_by"]:
        wrong.append(f"{case['name']}: the diagnosis named {found['bound_by']}")
    if "within" in case:
        if predicted["bound_by"] != case["bound_by"]:
            wrong.append(f"{case['name']}: the model named {predicted['bound_by']}")
        whose = next((one["host"] for one in predicted["bounds"]), "")
        if found["host"] != whose:
            wrong.append(
                f"{case['name']}: on {found['host'] or 'none'}, expected {whose or 'none'}"
            )
        if off is None or abs(off) > case["within"]:
            wrong.append(f"{case['name']}: {held:,} measured, {expected or 0:,} predicted")
    return {
        "name": case["name"],
        "predicted": expected if "within" in case else None,
        "by_model": predicted["bound_by"],
        "held": held,
        "off": off if "within" in case else None,
        "named": found["bound_by"],
        "host": found["host"],
        "end": found["end"],
        "sure": found["sure"],
        "evidence": found["evidence"][0] if found["evidence"] else "",
        "kernel": next(
            host["kernel"] for host in run["hosts"].values() if "servers" in host["groups"]
        ),
        "started": run["started"],
        "wrong": wrong,
    }


class FilterModule:
    """The filters of the playbook."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"provoke_row": provoke_row}
