"""Judges an answer by the rules of its cohort: pure functions from an answer to a `Verdict`."""
