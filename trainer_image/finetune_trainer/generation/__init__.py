"""Generation of answers: in batches during training, and for one prompt by the command line."""
