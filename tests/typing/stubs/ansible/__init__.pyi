"""The part of ansible-core that the roles use: it has no type hints of its own."""
