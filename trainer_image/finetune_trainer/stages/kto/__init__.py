"""Stage kto: preference optimization on answers that are desirable or undesirable."""
