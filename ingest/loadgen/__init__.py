"""Load for a server, and how fast it was."""
