"""Envoy's side, rendered from the tiers."""
