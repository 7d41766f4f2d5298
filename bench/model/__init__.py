"""The capacity model: what a host can hold and what each connection costs."""
