"""The results of a run: their format, their files, their page."""
