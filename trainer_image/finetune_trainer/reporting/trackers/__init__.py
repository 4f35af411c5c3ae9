"""``spec.reporting``: curves for TensorBoard, Weights & Biases and MLflow, while the job trains.

Sent by rank 0 alone: numbers, and the hyper-parameters that led to them. No texts, no secrets, no addresses.
"""
