"""What looks into a store without a server, and mends or copies it."""
