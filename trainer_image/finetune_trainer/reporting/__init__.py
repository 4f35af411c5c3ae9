"""What a run reports while it trains: status, log, metrics, plots, and curves for trackers."""
