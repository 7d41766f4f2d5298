"""Hosts over SSH: the controller pushes agents, talks to them and checks what they send."""
