"""What became of each request and what it cost: Envoy's log -> outcomes -> ledger -> report."""
