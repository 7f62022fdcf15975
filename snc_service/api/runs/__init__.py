"""Routes of a run: its record, policy, rule settings, commands, events."""
