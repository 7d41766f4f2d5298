"""One file for each claim, named by its id: the statement, its measurement, its judge."""
