"""Stage dpo: preference optimization on pairs of answers."""
