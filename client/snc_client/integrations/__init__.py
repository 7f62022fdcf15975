"""Adapters: SNCallback inside a training framework, one module per framework."""
