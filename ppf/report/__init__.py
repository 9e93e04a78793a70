"""What people read of a run: plots, the HTML page, tables and loggers."""
