"""The processes of a gateway, from their configuration to their end."""
