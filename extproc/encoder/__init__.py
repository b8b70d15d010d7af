"""Text -> vector, by an embedding model on this machine's CPU."""
