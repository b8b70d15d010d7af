"""What a configuration does to traffic, beside its controls."""
