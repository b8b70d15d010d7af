"""One request -> one decision, and what it changes in the request."""
