"""Reads the tensors of files: safetensors, torch checkpoints, indexes, distributed checkpoints."""
