"""Answer queries about a run: history, worst layers, export."""
