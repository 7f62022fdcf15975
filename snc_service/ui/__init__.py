"""The page, served as static files."""
