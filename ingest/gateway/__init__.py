"""HTTP in front of the objects. `docs/http.md`."""
