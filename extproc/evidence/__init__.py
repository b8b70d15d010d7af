"""Recorded or labelled traffic -> metrics, fitted parameters and gate verdicts, by the functions that serve."""
