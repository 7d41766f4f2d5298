"""The agent that runs on every host: holds or opens connections, and gathers evidence.

Pushed as one zipapp (:mod:`bench.agent.bundle`), so it uses the standard library alone and runs
on Python 3.9 or newer. It speaks :mod:`bench.wire` on standard input and output.
"""
