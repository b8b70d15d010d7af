"""What flips when a prompt is written differently."""
