"""Small experiments, one side each: a module has ``run(stage, args)`` and returns its figures.

Modules without one are what several of them need, or parts of one.

A trial runs in a process of its own (:mod:`bench.agent.stage`), so that it may lower limits of its
own, block, or fill its table of descriptors without an agent being harmed. What it opens or changes
it closes or puts back in ``finally`` or ``with``: the stage raises in it when it has to end.
"""
