"""How many TCP connections can this server hold, what stops it, and what does each one cost?"""
