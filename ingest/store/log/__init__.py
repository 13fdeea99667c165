"""The write-ahead log: its format, writer, reader, and recovery from it."""
