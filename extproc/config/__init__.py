"""YAML -> a snapshot: load, check, compile, reload."""
