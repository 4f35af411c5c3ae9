"""The trainer, on models that the tests make: real training, resuming and generation, on the CPU."""
