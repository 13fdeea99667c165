"""The one process that claims tickets, and writes the log and the chunks."""
