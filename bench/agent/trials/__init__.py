"""Small experiments, one side each: a module has ``run(stage, args)``, which returns figures.

Modules without ``run`` are shared by several trials, or are part of one.

A trial runs in its own process (:mod:`bench.agent.stage`). So it may lower its own limits, block,
or fill its table of descriptors without harm to an agent. It closes what it opens, and restores
what it changes, in ``finally`` or ``with``: the stage raises an exception in it when it has to end.
"""
