"""A whole stack on one machine: Envoy, router, sample upstreams."""
