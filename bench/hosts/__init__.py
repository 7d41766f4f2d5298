"""Hosts over SSH: agents are pushed, spoken to and checked here."""
