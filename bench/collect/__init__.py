"""One parser per source of evidence. Each takes the text as printed and returns plain data."""
