"""The outcome and cost of each request: Envoy's access log -> outcomes -> ledger -> report."""
