"""One request -> one decision, and the changes that it makes to the request."""
