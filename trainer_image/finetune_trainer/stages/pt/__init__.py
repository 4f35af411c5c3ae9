"""Stage pt: continued pre-training on plain text."""
