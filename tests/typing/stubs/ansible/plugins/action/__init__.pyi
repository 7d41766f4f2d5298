from typing import Any

class ActionBase:
    _task: Any
    _loader: Any
    def run(self, tmp: Any = ..., task_vars: Any = ...) -> dict[str, Any]: ...
