"""Importing: runs that other tools recorded, read from their files as untrusted input.

`sources.find` lists what a path holds. Each source is read into a `Recording`, `name_map` says
which of its names are norms of layers, and `RecordedColumns` yields it step by step.
"""
