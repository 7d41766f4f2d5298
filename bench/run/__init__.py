"""A run from beginning to end: prepare, ramp, hold and drain."""
