"""The store: one protocol, an engine per database, chosen by the URL and nothing else."""
