"""The HTTP gateway: one application, and a module for each API that it speaks. `docs/http.md`."""
