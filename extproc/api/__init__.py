"""What clients and upstreams say, in four APIs."""
