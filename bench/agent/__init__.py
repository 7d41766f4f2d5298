"""The agent that runs on every host. It holds or opens connections, and gathers evidence.

The controller pushes it as one zipapp (:mod:`bench.agent.bundle`). So it uses only the standard
library and runs on Python 3.9 or newer. It speaks :mod:`bench.wire` on standard input and output.
"""
