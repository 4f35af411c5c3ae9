"""Stage kto: preference optimization on answers that are wanted or not."""
