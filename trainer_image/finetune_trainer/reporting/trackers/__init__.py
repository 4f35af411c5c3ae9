"""``spec.reporting``: curves for TensorBoard, Weights & Biases and MLflow, while the job trains.

Only rank 0 sends them: metrics and hyper-parameters, but no texts, secrets or addresses.
"""
