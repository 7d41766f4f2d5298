"""How many TCP connections can a server hold, what stops it, and what does each connection cost?"""
