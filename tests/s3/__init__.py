"""A real S3 server on loopback, for tests: versitygw, built from a pinned Go module as the cluster's programs are."""
