"""The database interface that both engines implement, and the tables."""
