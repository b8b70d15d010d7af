"""`extproc console`: pages for a browser about decisions, traffic and evidence. They change nothing."""
