"""Text -> vector."""
