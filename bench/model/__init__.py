"""What a host can hold and what each connection costs, as a model."""
