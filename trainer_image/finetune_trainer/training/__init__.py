"""Training, for all stages: the recipe, the loop of steps, the base trainer, evaluation and what they use."""
