"""Objects: bytes of any size under a name, made of chunks. `docs/objects.md`."""
