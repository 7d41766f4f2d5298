"""How many hosts of which size a number of connections needs."""
