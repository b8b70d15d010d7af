"""From a folder of YAML to a snapshot: schema, load, checks, compile, reload."""
