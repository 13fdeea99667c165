"""One server: its configuration, its processes, their queue, its figures."""
