"""Stage ppo: the policy answers prompts, a reward model scores the answers, and the policy learns from the scores."""
