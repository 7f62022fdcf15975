"""Authentication, authorization, rate limits, sessions, tokens and logs of access."""
