"""What a model does when it is let to answer: generation, and metrics of texts."""
