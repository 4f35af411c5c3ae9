"""What a run tells the outside: status, logs, metrics, plots, the model card and provenance."""
