"""Requests written differently, and how many decisions change."""
