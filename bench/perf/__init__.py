"""Side-by-side benchmark of the connection engine and its plain-C references."""
