"""Traffic and recorded answers, read from files."""
