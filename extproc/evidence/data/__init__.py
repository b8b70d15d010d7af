"""Traffic and recorded answers, read."""
