"""An agent whose controller is gone, as its main loop learns of it."""

from bench.agent.main import Agent
from bench.agent.outbox import Gone


class Closed:
    """An output that nobody reads any more."""

    def put(self, event):
        raise Gone(32, "the controller is gone")

    def flush(self):
        raise Gone(32, "the controller is gone")


def agent():
    made = Agent.__new__(Agent)  # without its streams and signals, which are this process's
    made._out, made._stopping = Closed(), False
    return made


def test_who_cannot_be_told_anything_ends_the_agent():
    made = agent()
    made.say({"event": "alive"})
    assert made._stopping


def test_so_does_who_takes_nothing_of_what_waits():
    made = agent()
    made._flush()
    assert made._stopping
