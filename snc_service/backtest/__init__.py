"""Backtest: judges stored or recorded rows by the rules, and scores the resulting alarms."""
