"""Stage rm: a reward model, which learns from pairs which of two answers is better."""
