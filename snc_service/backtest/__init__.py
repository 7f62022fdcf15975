"""Backtest: what the rules say of rows that are stored or lie in files, and what that is worth."""
