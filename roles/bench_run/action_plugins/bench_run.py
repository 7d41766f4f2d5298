"""Run a scenario as an Ansible task: a thin wrapper around ``python -m bench run``.

Arguments: ``scenario`` (name), ``set`` (fields to override, which replace the inventory's ``set``),
``results`` (directory), ``dry_run`` (check only; implied by check mode). Returns ``summary``
(lines), ``verdict``, ``run_json`` (path) and the fact ``bench_run``: run.json without its curve.

With ``preflight`` it runs ``python -m bench preflight``, which asks the hosts whether the run would
fit. Returns ``fits``, ``msg`` and ``variables`` for the tuning roles; fails if it does not fit.

With ``claims`` (names; none for all) it runs ``python -m bench claims run`` with ``profile``.
Returns ``summary`` (the table), ``verdicts`` (claim to verdict) and ``claims_json`` (path).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible import context
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

PROJECT = Path(__file__).resolve().parents[3]
INTERRUPTED = 130


def _units() -> Any:
    """Return the module bench/units.py, which makes text safe for a terminal."""
    path = PROJECT / "bench" / "units.py"
    spec = importlib.util.spec_from_file_location("connlab_units", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path}: cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


UNITS = _units()


class ActionModule(ActionBase):
    """The action; it runs on the controller, whichever host the task is for."""

    _VALID_ARGS = frozenset(
        {"scenario", "set", "results", "dry_run", "preflight", "claims", "profile"}
    )
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Run the command and return its result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        command = self._command(task_vars or {})
        child = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        try:
            ended = self._follow(child)
        except BaseException:
            # An interrupt reaches the child too, which closes what it opened before it ends.
            child.terminate()
            raise
        finally:
            if child.stdout is not None:
                child.stdout.close()
            child.wait()
        result.update(changed=False, exit_status=child.returncode)
        if ended.get("event") == "result":
            result.update(_outcome(ended))
        elif ended.get("event") == "fit":
            result.update(
                fits=ended["fits"],
                failed=not ended["fits"],
                msg="; ".join(line.strip() for line in ended["lines"]),
                variables=ended["variables"],
            )
        elif ended.get("event") == "claims":
            result.update(_claims(ended, child.returncode))
        elif child.returncode:
            said = ended.get("message", f"{' '.join(command[1:3])} exited {child.returncode}")
            result.update(failed=True, msg=UNITS.printable(str(said)))
        else:
            result.update(msg=ended.get("text", ""))
        return result

    def _command(self, task_vars: Mapping[str, Any]) -> list[str]:
        args = self._task.args
        unknown = sorted(set(args) - self._VALID_ARGS)
        if unknown:
            raise AnsibleActionFail(f"bench_run: {unknown[0]}: unknown argument")
        fields = args.get("set") or {}
        if not isinstance(fields, Mapping):
            raise AnsibleActionFail(f"bench_run: set: got {fields!r}, expected a dict of fields")
        if "claims" in args:
            return self._claims_command(args, task_vars)
        extra = load_extra_vars(self._loader)
        overrides = {"connections": extra["connections"]} if "connections" in extra else {}
        overrides.update(fields)
        command = [sys.executable, "-m", "bench"]
        if args.get("preflight"):
            command += ["preflight", "--scenario", str(args.get("scenario", ""))]
        else:
            command += ["run", str(args.get("scenario", ""))]
            command += ["--results", str(PROJECT / args.get("results", "results"))]
        command += self._hosts(task_vars)
        if "set" in args:
            command += ["--extra-vars", '{"set": {}}']  # the argument has the variable's fields
        for key, value in overrides.items():
            text = value if isinstance(value, str) else json.dumps(value)
            command += ["--set", f"{key}={text}"]
        if not args.get("preflight") and (args.get("dry_run") or self._task.check_mode):
            command.append("--dry-run")
        return command

    def _claims_command(self, args: Mapping[str, Any], task_vars: Mapping[str, Any]) -> list[str]:
        names = args["claims"]
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise AnsibleActionFail(f"bench_run: claims: got {names!r}, expected a list of names")
        command = [sys.executable, "-m", "bench", "claims", "run", *map(str, names)]
        command += ["--profile", str(args.get("profile", "small"))]
        command += ["--results", str(PROJECT / args.get("results", "results"))]
        command += self._hosts(task_vars)
        if args.get("dry_run") or self._task.check_mode:
            command.append("--dry-run")
        return command

    def _hosts(self, task_vars: Mapping[str, Any]) -> list[str]:
        """Return the options that make the command read the same inventory as this play."""
        words = ["--progress", "ndjson"]
        for source in task_vars.get("ansible_inventory_sources") or []:
            words += ["--inventory", str(source)]
        for text in context.CLIARGS.get("extra_vars") or ():
            words += ["--extra-vars", text]
        return words

    def _follow(self, child: subprocess.Popen[str]) -> dict[str, Any]:
        """Show the progress, and return the last event that is not progress."""
        last: dict[str, Any] = {}
        for event in _events(child):
            if event.get("event") == "progress":
                _show(event["text"], "bright blue")
            else:
                last = event
        for text in last.get("summary", last.get("lines", [])):
            _show(text, "bright green")
        return last


def _show(text: object, colour: str) -> None:
    Display().display(f"  {UNITS.printable(str(text))}", color=colour)


def _events(child: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert child.stdout is not None
    for line in child.stdout:
        try:
            event = json.loads(line)
        except ValueError:
            event = {"event": "text", "text": UNITS.printable(line.strip())}
        yield event if isinstance(event, dict) else {"event": "text", "text": line.strip()}


def _claims(ended: Mapping[str, Any], status: int) -> dict[str, Any]:
    verdicts = ended["verdicts"]
    found: dict[str, Any] = {
        "failed": status != 0,
        "summary": ended["summary"],
        "verdicts": verdicts,
        "claims_json": ended["path"],
    }
    if status:
        bad = [name for name, one in verdicts.items() if one in ("failed", "inconclusive")]
        found["msg"] = f"claims without a verdict: {', '.join(bad)}"
    return found


def _outcome(ended: Mapping[str, Any]) -> dict[str, Any]:
    run = json.loads(Path(ended["path"]).read_text(encoding="utf-8"))
    run.pop("curve")
    failed = run["verdict"] != "pass"
    outcome = {
        "failed": failed,
        "verdict": run["verdict"],
        "summary": ended["summary"],
        "run_json": ended["path"],
        "ansible_facts": {"bench_run": run},
    }
    if failed:
        outcome["msg"] = f"verdict {run['verdict']}: {run['reason']}"
    return outcome
