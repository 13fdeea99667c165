"""A multi-process ingest engine: small records in, verified, durable before they are acknowledged."""

__version__ = "0.1.0"
