"""How chunks lie on the disk: packs of 1296 slots, or a tree with a file for each chunk."""
