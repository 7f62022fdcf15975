"""Tables of single records: runs, events, policies, commands, tokens, incidents."""
