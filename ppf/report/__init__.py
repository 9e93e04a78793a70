"""Reports of a run: plots, the HTML page, console tables and loggers."""
