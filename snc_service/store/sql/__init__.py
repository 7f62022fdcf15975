"""The SQL statements, written once for both engines, one file per noun."""
