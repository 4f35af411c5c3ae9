"""Stage ppo: the model answers, is scored, and learns from the scores."""
