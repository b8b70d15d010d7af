"""Reads and edits what clients and upstreams send, in four APIs."""
