"""Judges answers: the hold on an answer, the ruling on it, and the queue for people."""
