"""The limit that stopped a run: findings from its evidence, and the verdict."""
