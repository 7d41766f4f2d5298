"""What a run leaves behind: its format, its files, its page."""
