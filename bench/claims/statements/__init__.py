"""One file for each claim, named by its id: what is said, how it is measured, how it is judged."""
