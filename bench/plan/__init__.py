"""The plan of a run: addresses, ports and the agents' shares."""
