"""Names, versions and where their bytes lie: SQLite, the one process that changes it, and who asks that."""
