"""The gRPC server and what keeps it running."""
