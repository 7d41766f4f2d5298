"""The size of a fleet: how many hosts of which size a number of connections needs."""
