"""A benchmark of the connection engine beside its plain-C references."""
