"""Envoy's configuration, rendered from the intents and the policy."""
