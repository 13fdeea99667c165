"""What looks at a store that no server has, and mends or copies it."""
