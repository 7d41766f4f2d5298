"""A run from its beginning to its end: ramp, hold and drain, in order."""
