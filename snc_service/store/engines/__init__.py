"""Connect to a database: SQLite or PostgreSQL."""
