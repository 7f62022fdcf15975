"""The engines: connections to SQLite and PostgreSQL."""
