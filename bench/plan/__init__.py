"""Who connects to what: addresses, ports and the agents' shares."""
