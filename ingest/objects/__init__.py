"""Files of any size made of chunks: in, out, collected, found again. `docs/objects.md`."""
