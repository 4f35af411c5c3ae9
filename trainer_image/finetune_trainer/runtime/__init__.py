"""What each process of a run needs: signals, heartbeats, memory, exit reports and results."""
