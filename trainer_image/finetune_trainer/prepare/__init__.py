"""The prepare phase, on CPUs alone: from a job to the data and models that training starts from. See `pipeline`."""
