"""The operator on a real API server, without nodes."""
